"""Copy-paste: the instance pool, what of it goes where in an image, and how it gets there."""
