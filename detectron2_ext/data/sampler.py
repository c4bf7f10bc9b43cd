"""Which image is the k-th of the training, and the random numbers that belong to it, for any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from detectron2_ext.data.dataset import DetectionDataset, class_frequencies

# What a generator is for: equal positions in the training then still draw independently of each other.
EPOCHS, VIEW, PASTE, REPLACEMENT, PASTE_COUNTS, PASTE_ORDER, TEST_IMAGE, RANKED = range(8)


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


class GroupedStream:
    """A stream in another order, so that images ``n * size`` to ``(n + 1) * size`` are of one group.

    Images wait until ``size`` of their group are there, and then come together (Detectron2's aspect ratio grouping,
    for a batch of all processes together). An image waits for as long as its group needs, over the end of an epoch.

    Args:
        groups: number of the group of each image of the data set, int (N,).
        size: of a batch.
    """

    def __init__(self, stream: ImageStream, groups: np.ndarray, size: int) -> None:
        self._stream, self._groups, self._size = stream, groups, size

    def since(self, position: int) -> Iterator[int]:
        """The entries from ``position`` on, without end."""
        waiting = np.zeros(0, np.int64)
        for epoch in itertools.count():
            entries = np.concatenate([waiting, self._stream.epoch(epoch)])
            ready, waiting = self._group(entries)
            yield from ready[position:].tolist()
            position = max(0, position - len(ready))

    def _group(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those that make full batches, in the order in which the batches fill; the others, in theirs."""
        groups = self._groups[entries]
        places = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        full = [of[: len(of) // self._size * self._size].reshape(-1, self._size) for of in places]
        batches = np.concatenate(full)
        batches = batches[batches[:, -1].argsort()]
        left = np.setdiff1d(np.arange(len(entries)), batches)
        return entries[batches.ravel()], entries[left]


class StreamSampler(Sampler):
    """One rank's part of the stream as ``(k, data set index)``.

    Iteration ``t`` of the training takes the entries ``t * batch_size`` to ``(t + 1) * batch_size``, rank
    ``r`` of ``w`` those with ``k % w == r``; so a batch holds the same images whatever the number of ranks
    and workers.
    """

    def __init__(
        self, stream: ImageStream | GroupedStream, start: int, stop: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._stream, self._start, self._stop = stream, start, stop
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for k, index in zip(range(self._start, self._stop), self._stream.since(self._start), strict=False):
            if k % self._world_size == self._rank:
                yield k, index

    def __len__(self) -> int:
        return len(range(self._start, self._stop)[self._rank :: self._world_size])
