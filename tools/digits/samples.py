"""The objects of LVIS-Digits: scikit-learn's handwritten digits, split by sample, inked in one of three colours."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {"red": (205, 45, 50), "green": (40, 150, 60), "blue": (45, 75, 205)}
NUM_CATEGORIES = len(WORDS) * len(INKS)
_SPLIT_SIZES = {"generation": 900, "train": 500, "val": 397}


@dataclass(frozen=True)
class Samples:
    """Handwritten digits: ``pixels`` (N, 8, 8) float32 in [0, 1], ``labels`` (N,), ``indices`` into the package's."""

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]


def split() -> dict[str, Samples]:
    """The disjoint parts: what generative models may see, training, validation. Always the same."""
    digits = load_digits()
    order = np.random.default_rng(1797).permutation(len(digits.target))
    parts, start = {}, 0
    for name, size in _SPLIT_SIZES.items():
        indices = np.sort(order[start : start + size])
        pixels = (digits.images[indices] / 16).astype(np.float32)
        parts[name] = Samples(pixels, digits.target[indices].astype(np.int64), indices)
        start += size
    return parts


def category_name(category_id: int) -> str:
    """``red three`` and the like, for category ids from 1 to 30."""
    digit, ink = divmod(category_id - 1, len(INKS))
    return f"{list(INKS)[ink]} {WORDS[digit]}"


def draw(pixels: npt.NDArray[np.float32], height: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A digit as coverage in [0, 1], (height, width), tight: enlarged, slightly rotated, slanted and stretched."""
    side = 4 * height
    angle, slant = np.deg2rad(rng.uniform(-8, 8)), rng.uniform(-0.12, 0.12)
    stretch = rng.uniform(0.85, 1.15)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[stretch, slant], [0, 1]]) * (height / 8)
    offset = side / 2 - matrix @ np.array([3.5, 3.5])
    affine = np.column_stack([matrix, offset])
    enlarged = cv2.warpAffine(pixels, affine, (side, side), flags=cv2.INTER_CUBIC)
    coverage = np.clip((enlarged - 0.3) / 0.3, 0, 1)
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    tight = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    width = max(round(tight.shape[1] * height / tight.shape[0]), 2)
    return cv2.resize(tight, (width, height), interpolation=cv2.INTER_AREA)


def ink_colour(ink: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """An RGB colour near that of the ink: pens differ."""
    base = np.array(list(INKS.values())[ink], dtype=np.float32)
    return np.clip(base + rng.normal(0, 16, 3), 0, 255).astype(np.float32)


def blend(
    canvas: npt.NDArray[np.uint8],
    coverage: npt.NDArray[np.float32],
    colour: npt.NDArray[np.float32],
    left: int,
    top: int,
) -> None:
    """Inks a digit onto ``canvas`` (H, W, 3) in place; it must lie inside."""
    height, width = coverage.shape
    window = canvas[top : top + height, left : left + width]
    weight = coverage[..., None]
    window[:] = np.rint(window * (1 - weight) + colour * weight).astype(np.uint8)
