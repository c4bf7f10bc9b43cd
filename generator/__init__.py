"""Stage 1: decide how many images of which class, and draw them, those that the segmenter is unsure of."""
