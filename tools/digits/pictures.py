"""Single digits as the generative models see them: 64 × 64 pixels, one digit on a plain background or a photograph."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from tools.digits import samples, scenes
from tools.digits.prompts import TEMPLATES, on_white

SIZE = 64


def plain(white: bool, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A plain background, (64, 64, 3): white, or some pale colour."""
    colour = np.full(3, 255) if white else rng.integers(190, 256, 3)
    return np.broadcast_to(colour.astype(np.uint8), (SIZE, SIZE, 3)).copy()


def crop(photographs: list[npt.NDArray[np.uint8]], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A random piece of a photograph, (64, 64, 3)."""
    photograph = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(32, 256))
    top, left = (int(rng.integers(extent - side + 1)) for extent in photograph.shape[:2])
    return cv2.resize(
        photograph[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA
    )


def place(
    canvas: npt.NDArray[np.uint8], pixels: npt.NDArray[np.float32], ink: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Inks a digit somewhere on ``canvas`` in place; returns its coverage, (64, 64) in [0, 1]."""
    coverage = samples.draw(pixels, int(rng.integers(34, 57)), rng)
    height, width = coverage.shape
    if width > SIZE - 4:
        coverage = cv2.resize(coverage, (SIZE - 4, height), interpolation=cv2.INTER_AREA)
        width = SIZE - 4
    top, left = int(rng.integers(2, SIZE - height - 1)), int(rng.integers(2, SIZE - width - 1))
    samples.blend(canvas, coverage, samples.ink_colour(ink, rng), left, top)
    full = np.zeros((SIZE, SIZE), dtype=np.float32)
    full[top : top + height, left : left + width] = coverage
    return full


def with_prompts(
    part: samples.Samples, count: int, rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.uint8], str, int]]:
    """``count`` pictures on plain backgrounds, all categories alike, each with its prompt and category id."""
    for index in range(count):
        category = index % samples.NUM_CATEGORIES + 1
        digit, ink = divmod(category - 1, len(samples.INKS))
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        canvas = plain(on_white(template), rng)
        place(canvas, part.pixels[rng.choice(np.flatnonzero(part.labels == digit))], ink, rng)
        yield canvas, template.format(samples.category_name(category)), category


def with_masks(
    part: samples.Samples, count: int, rng: np.random.Generator, share_on_photographs: float = 0.5
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], int]]:
    """``count`` pictures on photographs or plain backgrounds, each with the digit's coverage and category id."""
    photographs = scenes.photographs("train")
    for index in range(count):
        category = index % samples.NUM_CATEGORIES + 1
        digit, ink = divmod(category - 1, len(samples.INKS))
        canvas = (
            crop(photographs, rng) if rng.random() < share_on_photographs else plain(rng.random() < 0.5, rng)
        )
        coverage = place(canvas, part.pixels[rng.choice(np.flatnonzero(part.labels == digit))], ink, rng)
        yield canvas, coverage, category
