"""From images to scored cut-outs: one foreground model, or the better of several for each image."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from diSegmenter.annotate import MaskCleaner

Foreground = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
Scorer = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[int]], np.ndarray]
_SIDE = 1.2  # of the square that a cut-out is shown on, relative to its longer side


class CutOut(NamedTuple):
    """An object in its image.

    ``alpha``: uint8 (H, W); ``objects``: how many there were before the mask was cleaned; ``scores``: 100 x cosine
    of CLIP on white and on black; ``foreground``: the model that made the mask.
    """

    alpha: np.ndarray
    objects: int
    scores: tuple[float, float]
    foreground: str


def on_white_square(cutout: np.ndarray) -> np.ndarray:
    """A cut-out, RGBA uint8 (h, w, 4), in the middle of a white square: uint8 (s, s, 3).

    The square is a fifth larger than the longer side: processors that crop to a square, or squeeze into one, leave the
    object as it is.
    """
    height, width = cutout.shape[:2]
    side = math.ceil(_SIDE * max(height, width))
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = over_white(cutout)
    return square


def over_white(cutout: np.ndarray) -> np.ndarray:
    """A cut-out, RGBA uint8 (h, w, 4), as it looks on white: uint8 (h, w, 3)."""
    share = cutout[..., 3:].astype(np.float32) / 255
    return np.rint(share * cutout[..., :3] + (1 - share) * 255).astype(np.uint8)


class Cutter(Protocol):
    """Cuts out and scores."""

    def __call__(self, images: Sequence[np.ndarray], category_ids: Sequence[int]) -> list[CutOut]:
        """A cut-out of each image, uint8 (H, W, 4), that is to show the category."""


class OneModel:
    """What one foreground model finds.

    Args:
        name: of the model, for the record.
        foreground: uint8 images (H, W, 4) to uint8 alpha masks (H, W).
        scorer: images, masks and category ids to CLIP scores (N, 2), on white and on black.
    """

    def __init__(self, name: str, foreground: Foreground, clean: MaskCleaner, scorer: Scorer) -> None:
        self._name, self._foreground, self._clean, self._scorer = name, foreground, clean, scorer

    def __call__(self, images: Sequence[np.ndarray], category_ids: Sequence[int]) -> list[CutOut]:
        alphas, objects = zip(*map(self._clean, self._foreground(images)), strict=True)
        scores = self._scorer(images, alphas, category_ids).tolist()
        return [
            CutOut(alpha, count, (white, black), self._name)
            for alpha, count, (white, black) in zip(alphas, objects, scores, strict=True)
        ]


class BestOf:
    """For each image the cut-out with the largest CLIP score (X-Paste), of those that show anything.

    Of equal ones the first.

    Args:
        cutters: one for each foreground model.
    """

    def __init__(self, cutters: Sequence[Cutter]) -> None:
        self._cutters = list(cutters)

    def __call__(self, images: Sequence[np.ndarray], category_ids: Sequence[int]) -> list[CutOut]:
        found = [cut_out(images, category_ids) for cut_out in self._cutters]
        return [max(of_image, key=_merit) for of_image in zip(*found, strict=True)]


def _merit(cut_out: CutOut) -> tuple[bool, float]:
    return bool(cut_out.alpha.any()), max(cut_out.scores)


class InTurn:
    """A model that threads share: one of them at a time has it."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model, self._turn = model, threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        with self._turn:
            return self._model(*inputs)
