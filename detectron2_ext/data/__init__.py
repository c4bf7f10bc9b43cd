"""Training and test data: annotation files, large-scale jitter, copy-paste from the instance pool,
loaders."""
