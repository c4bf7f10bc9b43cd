"""Which image is the k-th of the training, and the random numbers that belong to it, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from detectron2_ext.data.dataset import DetectionDataset, class_frequencies

# What a generator is for: equal positions in the training then still draw independently of each other.
EPOCHS, VIEW, PASTE, REPLACEMENT, PASTE_COUNTS, PASTE_ORDER = range(6)


def generator(seed: int, purpose: int, *position: int) -> np.random.Generator:
    """The generator of one purpose at one position (an image of the stream, an epoch, …) of a run."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, purpose, *position])))


def repeat_factors(dataset: DetectionDataset, images: np.ndarray, threshold: float) -> np.ndarray:
    """How often per epoch each image of ``images`` is seen: float64, at least 1.

    The rarest class of an image decides: ``max_c max(1, sqrt(threshold / f_c))``, with ``f_c`` the share of images
    that contain class ``c`` (Gupta et al., LVIS, 2019, appendix B.2). Crowds do not count.
    """
    frequency = class_frequencies(dataset, images)
    seen = frequency > 0
    of_class = np.ones(len(frequency))
    of_class[seen] = np.maximum(1.0, np.sqrt(threshold / frequency[seen]))
    of_image = np.ones(len(dataset))
    real = ~dataset.crowd
    np.maximum.at(of_image, dataset.image_of_object[real], of_class[dataset.classes[real]])
    return of_image[images]


class ImageStream:
    """An endless sequence of images; its k-th entry depends on the seed and on k, and on nothing else.

    Epoch ``e`` holds image ``i`` either ``floor(r_i)`` or ``ceil(r_i)`` times, so that the mean over epochs
    is the repeat factor ``r_i``, in an order drawn from ``(seed, e)``.

    Args:
        images: data set indices, int64 (I,).
        factors: repeat factor of each, float64 (I,); all ones for plain shuffling.
        seed: of the run.
    """

    def __init__(self, images: np.ndarray, factors: np.ndarray, seed: int) -> None:
        if len(images) == 0:
            raise ValueError("a stream needs at least one image")
        self._images, self._seed = images, seed
        self._whole = np.floor(factors).astype(np.int64)
        self._fraction = factors - self._whole

    def epoch_size(self, epoch: int) -> int:
        """Number of entries of an epoch."""
        return int(self._repeats(epoch)[0].sum())

    def epoch(self, epoch: int) -> np.ndarray:
        """Data set indices of an epoch in their order: int64."""
        repeats, rng = self._repeats(epoch)
        return rng.permutation(np.repeat(self._images, repeats))

    def since(self, position: int) -> Iterator[int]:
        """The entries from ``position`` on, without end."""
        epoch = 0
        while (size := self.epoch_size(epoch)) <= position:
            position -= size
            epoch += 1
        while True:
            yield from self.epoch(epoch)[position:].tolist()
            position = 0
            epoch += 1

    def _repeats(self, epoch: int) -> tuple[np.ndarray, np.random.Generator]:
        rng = generator(self._seed, EPOCHS, epoch)
        return self._whole + (rng.random(len(self._fraction)) < self._fraction), rng


class StreamSampler(Sampler):
    """One rank's part of the stream as ``(k, data set index)``.

    Iteration ``t`` of the training takes the entries ``t * batch_size`` to ``(t + 1) * batch_size``, rank
    ``r`` of ``w`` those with ``k % w == r``; so a batch holds the same images whatever the number of ranks
    and workers.
    """

    def __init__(
        self, stream: ImageStream, start: int, stop: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._stream, self._start, self._stop = stream, start, stop
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for k, index in zip(range(self._start, self._stop), self._stream.since(self._start), strict=False):
            if k % self._world_size == self._rank:
                yield k, index

    def __len__(self) -> int:
        return len(range(self._start, self._stop)[self._rank :: self._world_size])
