"""Random generators that depend on what is drawn: the same for any number of processes."""

from __future__ import annotations

import numpy as np

# What a generator is for: equal positions in the training then still draw independently of each other.
EPOCHS, VIEW, PASTE, REPLACEMENT, PASTE_COUNTS, PASTE_ORDER, COPY_SOURCE = range(7)


def generator(seed: int, purpose: int, *position: int) -> np.random.Generator:
    """The generator of one purpose at one position (an image of the stream, an epoch, …) of a run."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, purpose, *position])))
