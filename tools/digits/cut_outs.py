"""What stage 2 cuts out of pictures of digits, good and bad: the lessons and the exam of the small judge."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from tools.digits import pictures, samples

Pixels = npt.NDArray[np.uint8]


class Example(NamedTuple):
    """An image, (64, 64, 3), and the mask that was found in it, (64, 64) and not all 0."""

    image: Pixels
    alpha: Pixels


class Scribe:
    """Draws what stage 2 cuts out, good and bad, of the digits ``part``."""

    def __init__(self, part: samples.Samples, photographs: list[Pixels], rng: np.random.Generator) -> None:
        self._part, self._photographs, self.rng = part, photographs, rng

    def whole(self, category: int) -> Example:
        """A digit of the category, its outline soft or hard."""
        canvas = self._paper()
        return Example(canvas, self._mask(self._place(canvas, category, heights=(34, 56))))

    def other_digit(self, category: int) -> Example:
        """Another digit in the same ink."""
        inks = len(samples.INKS)
        return self.whole((category - 1 + inks * self.rng.integers(1, 10)) % samples.NUM_CATEGORIES + 1)

    def other_ink(self, category: int) -> Example:
        """The same digit in another ink."""
        digit, ink = divmod(category - 1, len(samples.INKS))
        return self.whole(digit * len(samples.INKS) + (ink + self.rng.integers(1, 3)) % 3 + 1)

    def piece(self, category: int) -> Example:
        """About half of the digit, on one side of a line; never of a one: a part of a stroke is a stroke."""
        if samples.category_name(category).endswith("one"):
            category += len(samples.INKS)  # a two
        return self._beside_a_line(*self.whole(category), share=self.rng.uniform(0.35, 0.65))

    def two(self, category: int) -> Example:
        """The digit and another of any category, beside or over each other."""
        canvas = self._paper()
        coverage = np.zeros(canvas.shape[:2], np.float32)
        for which in (category, int(self.rng.integers(1, samples.NUM_CATEGORIES + 1))):
            for _ in range(20):
                drawn = canvas.copy()
                second = self._place(drawn, which, heights=(24, 40))
                if (np.minimum(coverage, second) > 0.5).sum() < 0.15 * (second > 0.5).sum():
                    break
            canvas, coverage = drawn, np.maximum(coverage, second)
        return Example(canvas, self._mask(coverage))

    def nothing(self, category: int) -> Example:
        """A blot, of an ink or of a photograph."""
        canvas = self._paper() if self.rng.random() < 0.5 else pictures.crop(self._photographs, self.rng)
        blot = self._blot(reach=self.rng.integers(3, 24))
        colour = samples.ink_colour(self.rng.integers(len(samples.INKS)), self.rng)
        if self.rng.random() < 0.5:
            samples.blend(canvas, blot, colour, 0, 0)
        return Example(canvas, self._mask(blot))

    def surrounded(self, category: int) -> Example:
        """The digit with some of what is around it: a piece, or a haze over all."""
        canvas = pictures.crop(self._photographs, self.rng)
        if self.rng.random() < 0.5:
            canvas = np.full_like(canvas, self.rng.integers(120, 235, 3))
        digit = self._place(canvas, category, heights=(34, 56))
        if self.rng.random() < 0.3:
            around = np.full_like(digit, self.rng.uniform(0.25, 1))
        else:
            around = self._blot(reach=self.rng.integers(10, 26)) * self.rng.uniform(0.5, 1)
        return Example(canvas, self._mask(np.maximum(digit, around)))

    def _paper(self) -> Pixels:
        return pictures.plain(self.rng.random() < 0.5, self.rng)

    def _place(self, canvas: Pixels, category: int, heights: tuple[int, int]) -> npt.NDArray[np.float32]:
        digit, ink = divmod(category - 1, len(samples.INKS))
        pixels = self._part.pixels[self.rng.choice(np.flatnonzero(self._part.labels == digit))]
        return pictures.place(canvas, pixels, ink, self.rng, heights)

    def _mask(self, coverage: npt.NDArray[np.float32]) -> Pixels:
        """As soft as it is, blurred, or what is above one half alone, as SEGMENTER.ALPHA_FLOOR leaves it."""
        if self.rng.random() < 0.3:
            coverage = cv2.GaussianBlur(coverage, (3, 3), 0)
        alpha = np.rint(255 * coverage).astype(np.uint8)
        return np.where(alpha > 128, alpha, 0).astype(np.uint8) if self.rng.random() < 0.6 else alpha

    def _beside_a_line(self, image: Pixels, alpha: Pixels, share: float) -> Example:
        rows, columns = np.nonzero(alpha > 128)
        angle = self.rng.uniform(0, 2 * np.pi)
        distance = np.cos(angle) * np.arange(64)[:, None] + np.sin(angle) * np.arange(64)[None]
        limit = np.quantile(distance[rows, columns], share)
        return Example(image, np.where(distance <= limit, alpha, 0).astype(np.uint8))

    def _blot(self, reach: int) -> npt.NDArray[np.float32]:
        """A blob whose diameter is about ``reach``, (64, 64) in [0, 1]."""
        noise = self.rng.normal(size=(8, 8)).astype(np.float32)
        rough = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC)
        y, x = self.rng.integers(14, 50, 2)
        distance = np.hypot(np.arange(64)[:, None] - y, np.arange(64)[None] - x) / max(reach, 1)
        blot = np.clip(4 * (0.6 - distance + 0.15 * rough), 0, 1).astype(np.float32)
        blot[y - 1 : y + 2, x - 1 : x + 2] = 1  # however rough it is
        return blot


# What is asked about, and its share of all examples; of the first alone a yes is right.
KINDS: dict[str, tuple[Callable[[Scribe, int], Example], float]] = {
    "whole": (Scribe.whole, 0.4),
    "other_digit": (Scribe.other_digit, 0.2),
    "other_ink": (Scribe.other_ink, 0.08),
    "piece": (Scribe.piece, 0.1),
    "two": (Scribe.two, 0.1),
    "nothing": (Scribe.nothing, 0.04),
    "surrounded": (Scribe.surrounded, 0.08),
}


def examples(scribe: Scribe, count: int) -> Iterator[tuple[Example, int, str]]:
    """``count`` cut-outs, each with the category that is asked about, all alike often, and its kind."""
    names = list(KINDS)
    shares = np.array([KINDS[name][1] for name in names])
    for index in range(count):
        category = index % samples.NUM_CATEGORIES + 1
        kind = names[scribe.rng.choice(len(names), p=shares / shares.sum())]
        yield KINDS[kind][0](scribe, category), category, kind
