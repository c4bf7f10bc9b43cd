"""How large a pasted object becomes: from the sizes of real objects of its class and how well it is
detected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from detectron2_ext.data.dataset import DetectionDataset

SMALLEST_SIDE = 10  # pixels: lower limit of the square root of an object's box area
LARGEST_SHARE = 0.5  # upper limit of the same, as a share of the square root of the image's area
FACTOR_AT_ZERO = 16.0  # of the mean size for a class with AP 0; its inverse at AP 100


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
    factors[known] = FACTOR_AT_ZERO ** np.where(ap[known] <= mean, below, np.maximum(above, -1))
    return factors


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
        return min(max(drawn, SMALLEST_SIDE / image_size[0]), LARGEST_SHARE)


class UniformSize:
    """``uniform``: ``a`` drawn evenly from a range, for every class; ``fixed`` is a range of one number."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def __call__(self, class_index: int, image_size: tuple[int, int], rng: np.random.Generator) -> float:
        return rng.uniform(self._low, self._high)


def native_size(class_index: int, image_size: tuple[int, int], rng: np.random.Generator) -> None:
    """``native``: the pixels that the cut-out has."""
