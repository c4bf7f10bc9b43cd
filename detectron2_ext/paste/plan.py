"""What a pool gives to one image: which instances, how large, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.sampler import PASTE_COUNTS, PASTE_ORDER, generator
from detectron2_ext.data.view import Scene

FEW = (1, 3)  # how many instances MRCA pastes into an image: 1 or 2
SMALLEST_ROOT = 10  # pixels: lower limit of the square root of an object's box area
LARGEST_SHARE = 0.5  # upper limit of the same, as a share of the square root of the image's area
ASPECT_JITTER = 0.2  # a cut-out's aspect ratio is multiplied by 1 ± this
SMALLEST_SIDE = 5  # pixels: a smaller object is not pasted
FACTOR_AT_ZERO = 16.0  # of the mean size for a class with AP 0; its inverse at AP 100


class Placement(NamedTuple):
    """One instance to paste.

    ``area_root``: its box gets ``area_root² H W`` pixels, None for as many as the cut-out has; ``corner``:
    its top left pixel (x, y), None for anywhere.
    """

    pool_index: int
    area_root: float | None
    corner: tuple[int, int] | None


class PastePlan(Protocol):
    """Decides what to paste into an image."""

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator) -> Iterator[Placement]:
        """The placements for ``scene``, the ``k``-th image of the stream, from back to front."""


class Scattered:
    """Instances by a drawing rule, their sizes by another, anywhere in the image."""

    def __init__(self, categories: np.ndarray, draws: Draws, size: SizeRule) -> None:
        self._categories, self._draws, self._size = categories, draws, size

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator) -> Iterator[Placement]:
        classes = np.array([scene_object.class_index for scene_object in scene.objects], dtype=np.int64)
        for index in self._draws(k, classes, rng).tolist():
            area_root = self._size(int(self._categories[index]), scene.size, rng)
            yield Placement(index, area_root, None)


class LikeAnotherImage:
    """``reference`` (X-Paste): classes, sizes and places are those of the objects of another training image.

    Its layout is scaled to 0.8 to 1 times what fits the scene, and put at a random place in it. An object
    whose class the pool lacks is left out.
    """

    def __init__(self, categories: np.ndarray, dataset: DetectionDataset, images: np.ndarray) -> None:
        self._dataset, self._images = dataset, images
        self._by_class = np.argsort(categories, kind="stable")
        self._first = np.searchsorted(categories[self._by_class], np.arange(dataset.num_classes + 1))

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator) -> Iterator[Placement]:
        record = self._dataset.record(int(rng.choice(self._images)))
        height, width = scene.size
        scale = rng.uniform(0.8, 1.0) * min(height / record.height, width / record.width)
        room = np.array([width - scale * record.width, height - scale * record.height])
        boxes = record.boxes * scale + np.tile(room * rng.random(2), 2)
        for box, class_index in zip(boxes[~record.crowd], record.classes[~record.crowd], strict=True):
            first, last = self._first[class_index : class_index + 2].tolist()
            if first == last:
                continue
            area_root = float(np.sqrt((box[2] - box[0]) * (box[3] - box[1]) / (height * width)))
            index = int(self._by_class[rng.integers(first, last)])
            yield Placement(index, area_root, (int(box[0]), int(box[1])))


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

    ``among_image_classes`` gives ``cats_random``: only classes that the image has itself, so nothing where the
    pool has none of them; any class where the image has no object.
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
        if self._among_image_classes and len(image_classes):
            places = np.flatnonzero(np.isin(self._classes, image_classes))
        chosen = rng.choice(places, size=rng.integers(*self._counts) if len(places) else 0)
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


class SizeRule(Protocol):
    """How large a pasted object becomes."""

    def __call__(
        self, class_index: int, image_size: tuple[int, int], rng: np.random.Generator
    ) -> float | None:
        """``a`` for an image of (height, width): the object's box gets ``a² H W`` pixels. None: as it is."""


class StatisticalSize:
    """``statistics``: drawn from the class statistics, ``a = clip(k_c mu_c + s_c N(0, 1), 10 / H, 0.5)``.

    ``factors``: ``k_c`` of each class, float64 (C,), or None for 1.
    """

    def __init__(self, sizes: ClassSizes, factors: np.ndarray | None = None) -> None:
        self._mean = sizes.mean if factors is None else sizes.mean * factors
        self._std = sizes.std

    def __call__(self, class_index: int, image_size: tuple[int, int], rng: np.random.Generator) -> float:
        drawn = self._mean[class_index] + self._std[class_index] * rng.standard_normal()
        return min(max(drawn, SMALLEST_ROOT / image_size[0]), LARGEST_SHARE)


class UniformSize:
    """``uniform``: ``a`` drawn evenly from a range, for every class."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def __call__(self, class_index: int, image_size: tuple[int, int], rng: np.random.Generator) -> float:
        return rng.uniform(self._low, self._high)


class SeenOrNot:
    """``statistics_or_uniform`` (DiverGen): one rule for the classes that have training boxes, another for the rest.

    ``seen``: which have, bool (C,).
    """

    def __init__(self, seen: np.ndarray, of_seen: SizeRule, of_unseen: SizeRule) -> None:
        self._seen, self._of_seen, self._of_unseen = seen, of_seen, of_unseen

    def __call__(
        self, class_index: int, image_size: tuple[int, int], rng: np.random.Generator
    ) -> float | None:
        rule = self._of_seen if self._seen[class_index] else self._of_unseen
        return rule(class_index, image_size, rng)


def native_size(class_index: int, image_size: tuple[int, int], rng: np.random.Generator) -> None:
    """``native``: the pixels that the cut-out has."""


@dataclass(frozen=True)
class ClassSizes:
    """Mean and standard deviation of ``sqrt(w h / (W H))`` over the training boxes of each class: float64
    (C,)."""

    mean: np.ndarray
    std: np.ndarray


def class_sizes(dataset: DetectionDataset) -> ClassSizes:
    """The size statistics of a data set, crowds not counted; a class without a box takes the mean of the
    others."""
    real = ~dataset.crowd
    boxes = dataset.boxes[real].astype(np.float64)
    heights, widths = dataset.sizes[dataset.image_of_object[real]].T.astype(np.float64)
    sizes = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (heights * widths))
    classes = dataset.classes[real]
    counts = np.bincount(classes, minlength=dataset.num_classes)
    seen = counts > 0
    if not seen.any():
        raise ValueError("size statistics need at least one object")
    mean = np.bincount(classes, sizes, dataset.num_classes) / np.maximum(counts, 1)
    variance = np.bincount(classes, (sizes - mean[classes]) ** 2, dataset.num_classes) / np.maximum(counts, 1)
    std = np.sqrt(variance)
    return ClassSizes(np.where(seen, mean, mean[seen].mean()), np.where(seen, std, std[seen].mean()))


def adaptive_factors(box_ap: Sequence[float | None]) -> np.ndarray:
    """``k_c``: what each class's mean size is multiplied by, float64 (C,).

    Linear in the logarithm between three points: AP 0 gives 16, the mean AP over classes 1, AP 100 gives 1/16
    (MRCA's adaptive object size). A class without AP gives 1. APs are in percent.
    """
    ap = np.array([np.nan if value is None else value for value in box_ap], dtype=np.float64)
    known = ~np.isnan(ap)
    factors = np.ones(len(ap))
    if not known.any():
        return factors
    mean = ap[known].mean()
    if not 0 < mean < 100:  # every class at the same end: all are at the mean
        return factors
    below, above = 1 - ap[known] / mean, (mean - ap[known]) / (100 - mean)
    factors[known] = FACTOR_AT_ZERO ** np.where(ap[known] <= mean, below, above)
    return factors


def draw_object_size(
    cutout_size: tuple[int, int],
    area_root: float | None,
    image_size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """(height, width) of an object whose box gets ``area_root² H W`` pixels, with jittered aspect.

    With ``area_root`` None it keeps the cut-out's number of pixels. None where a side is under 5 pixels, or
    not smaller than the image's. All sizes are (height, width).
    """
    ratio = cutout_size[1] / cutout_size[0] * rng.uniform(1 - ASPECT_JITTER, 1 + ASPECT_JITTER)
    if area_root is None:
        pixels = cutout_size[0] * cutout_size[1]
    else:
        pixels = area_root**2 * image_size[0] * image_size[1]
    width_exact = np.sqrt(pixels * ratio)
    width, height = int(width_exact), int(width_exact / ratio)
    if SMALLEST_SIDE <= width < image_size[1] and SMALLEST_SIDE <= height < image_size[0]:
        return height, width
    return None


def draw_position(
    image_size: tuple[int, int], object_size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """Top left pixel (x, y) of an object of (height, width) whose centre is anywhere in the image."""
    y, x = (
        int(np.floor(rng.uniform(0, extent) - length / 2 + 0.5))
        for extent, length in zip(image_size, object_size, strict=True)
    )
    return x, y
