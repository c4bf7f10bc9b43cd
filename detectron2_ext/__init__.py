"""Stage 3: trains the segmenter with copy-paste, evaluates it, tells the generator where it is weak."""
