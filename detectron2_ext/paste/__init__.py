"""Copy-paste: the instance pool, what of it an image gets, and how it is laid over the scene."""
