"""Stage 2: cuts the object out of each generated image, keeps it or drops it, adds it to the pool."""
