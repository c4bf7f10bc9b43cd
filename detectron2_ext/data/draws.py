"""Which instances of the pool an image of the training gets (INPUT.INST_POOL_SAMPLE_TYPE)."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np

from detectron2_ext.data.seeding import PASTE_COUNTS, PASTE_ORDER, generator

FEW = (1, 3)  # how many instances MRCA pastes into an image: 1 or 2


class Draws(Protocol):
    """Chooses the instances for one image."""

    def __call__(self, k: int, image_classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pool indices, int64 (n,), for the ``k``-th image of the training stream.

        ``image_classes``: class indices of the image's own objects. ``rng`` belongs to this image.
        """


class UniformDraws:
    """``uniform`` (MRCA): 1 or 2 per image from a shuffled pool without replacement, reshuffled when used up.

    The n-th draw since ``origin`` is entry ``n % N`` of the permutation of pass ``n // N``. How many draws
    the images before ``k`` took is known to every process without asking another, so over one pass the whole
    job, with all its ranks and workers, draws each instance once.

    Args:
        num_instances: N, in the pool.
        seed: of the run.
        origin: the first image of the stream that this pool serves: the first of the round.
    """

    _BLOCK = 1 << 16

    def __init__(self, num_instances: int, seed: int, origin: int) -> None:
        self._num_instances, self._seed, self._origin = num_instances, seed, origin
        self._drawn_before = [0]  # draws before each block of images
        self._block = lru_cache(maxsize=2)(self._count_block)
        self._pass = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, k: int, image_classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        block, place = divmod(k - self._origin, self._BLOCK)
        while len(self._drawn_before) <= block:
            self._drawn_before.append(
                self._drawn_before[-1] + int(self._block(len(self._drawn_before) - 1)[-1])
            )
        ends = self._block(block)
        first = self._drawn_before[block] + int(ends[place])
        draws = range(first, self._drawn_before[block] + int(ends[place + 1]))
        rows = [self._pass(n // self._num_instances)[n % self._num_instances] for n in draws]
        return np.array(rows, dtype=np.int64)

    def _count_block(self, block: int) -> np.ndarray:
        """Draws before each image of a block and, last, of all of them: int64 (block size + 1,)."""
        counts = generator(self._seed, PASTE_COUNTS, self._origin, block).integers(*FEW, size=self._BLOCK)
        return np.concatenate([[0], np.cumsum(counts)])

    def _shuffle(self, number: int) -> np.ndarray:
        return generator(self._seed, PASTE_ORDER, self._origin, number).permutation(self._num_instances)

    def __getstate__(self) -> tuple[int, int, int]:
        return self._num_instances, self._seed, self._origin

    def __setstate__(self, state: tuple[int, int, int]) -> None:
        self.__init__(*state)


class RandomDraws:
    """``random`` (X-Paste): each instance alike, with replacement; ``one``: the same with 1 or 2 per image.

    ``counts``: smallest number of instances per image, and one more than the largest.
    """

    def __init__(self, num_instances: int, counts: tuple[int, int]) -> None:
        self._num_instances, self._counts = num_instances, counts

    def __call__(self, k: int, image_classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(self._num_instances, size=rng.integers(*self._counts))


class ClassDraws:
    """``cas_random`` (X-Paste): a class uniformly, then an instance of it; with replacement.

    ``among_image_classes`` gives ``cats_random``: only classes that the image has itself, where it has any
    that the pool knows.
    """

    def __init__(
        self, categories: np.ndarray, counts: tuple[int, int], among_image_classes: bool = False
    ) -> None:
        self._by_class = np.argsort(categories, kind="stable")
        self._classes, self._first = np.unique(categories[self._by_class], return_index=True)
        self._count = np.diff(self._first, append=len(categories))
        self._counts, self._among_image_classes = counts, among_image_classes

    def __call__(self, k: int, image_classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        places = np.arange(len(self._classes))
        if self._among_image_classes:
            shared = np.flatnonzero(np.isin(self._classes, image_classes))
            places = shared if len(shared) else places
        chosen = rng.choice(places, size=rng.integers(*self._counts))
        return self._by_class[self._first[chosen] + rng.integers(self._count[chosen])]


class WeightedDraws:
    """``weighted``: each instance with a probability proportional to its weight, with replacement.

    ``weights``: (N,), none negative, not all 0.
    """

    def __init__(self, weights: np.ndarray, counts: tuple[int, int]) -> None:
        self._cumulative, self._counts = np.cumsum(weights, dtype=np.float64), counts

    def __call__(self, k: int, image_classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        thresholds = rng.uniform(0, self._cumulative[-1], size=rng.integers(*self._counts))
        return np.searchsorted(self._cumulative, thresholds, side="right")
