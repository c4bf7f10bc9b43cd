"""The letter box between the three stages: files on disk, their names and their formats (no torch)."""
