"""Which instances are in a picture of training images: the record inside ``pictures/training_rdNN.png``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pasted:
    """An entry each: ``images``, the number of the training image in the picture, from 1; ``files``, the name of the
    instance, as stage 1 gave it; ``categories``, its category id."""

    images: list[int]
    files: list[str]
    categories: list[int]
