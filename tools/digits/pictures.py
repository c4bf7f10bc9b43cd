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
    canvas: npt.NDArray[np.uint8],
    pixels: npt.NDArray[np.float32],
    ink: int,
    rng: np.random.Generator,
    heights: tuple[int, int] = (34, 56),
    off_centre: int = SIZE,
) -> npt.NDArray[np.float32]:
    """Inks a digit on ``canvas`` in place, at most ``off_centre`` pixels from its middle and all inside.

    Returns its coverage, (64, 64) in [0, 1].
    """
    coverage = samples.draw(pixels, int(rng.integers(heights[0], heights[1] + 1)), rng)
    if coverage.shape[1] > SIZE - 4:
        coverage = cv2.resize(coverage, (SIZE - 4, coverage.shape[0]), interpolation=cv2.INTER_AREA)
    top, left = (_start(extent, off_centre, rng) for extent in coverage.shape)
    samples.blend(canvas, coverage, samples.ink_colour(ink, rng), left, top)
    full = np.zeros((SIZE, SIZE), dtype=np.float32)
    full[top : top + coverage.shape[0], left : left + coverage.shape[1]] = coverage
    return full


def _start(extent: int, off_centre: int, rng: np.random.Generator) -> int:
    middle = (SIZE - extent) // 2
    reach = min(off_centre, middle - 2)
    return middle + int(rng.integers(-reach, reach + 1))


def with_prompts(
    part: samples.Samples, count: int, rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.uint8], str, int]]:
    """``count`` pictures on plain backgrounds, all categories alike, each with its prompt and category id.

    Digits are of nearly one size in the middle: pasting changes both, and shape is what is to be learned.
    """
    for index in range(count):
        category = index % samples.NUM_CATEGORIES + 1
        digit, ink = divmod(category - 1, len(samples.INKS))
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        canvas = plain(on_white(template), rng)
        pixels = part.pixels[rng.choice(np.flatnonzero(part.labels == digit))]
        place(canvas, pixels, ink, rng, heights=(46, 54), off_centre=2)
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
