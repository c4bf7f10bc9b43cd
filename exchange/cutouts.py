"""A cut-out on disk: the object as a lossless WebP image, and behind it, in the same file, its halves as plain pixels.

Pasting averages an object by halves until it is less than twice as large as it is to be, and most objects are pasted
small: where the half that this ends at is stored, nothing is decoded. A program that knows WebP alone sees the whole
object.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from exchange import files
from exchange.errors import UserError

_SMALLEST = 16  # pixels of a stored half's shorter side: what is smaller is made in no time
_Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]  # height, width


def encode_cutout(image: _Pixels, alpha: _Pixels, bbox: list[int]) -> bytes:
    """The box ``bbox`` (XYWH) of ``image``, uint8 (H, W, 3 or more), with ``alpha`` (H, W), and its halves.

    Method 0 of WebP's encoder decodes twice as fast as PNG and takes less space; the higher ones gain a tenth
    in size and take thirty times as long. Colours under alpha 0 are kept, since resizing blends them in.
    """
    x, y, width, height = bbox
    window = np.s_[y : y + height, x : x + width]
    pixels = np.dstack([image[window][..., :3], alpha[window]])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True, exact=True, method=0)
    return buffer.getvalue() + _behind(pixels)


def _behind(pixels: _Pixels) -> bytes:
    """The halves of an object, as they are stored."""
    stored = []
    for _ in _halves(pixels.shape[:2]):
        pixels = _halve(pixels)
        stored.append(pixels.tobytes())
    return b"".join(stored)


def _halves(size: Size) -> Iterator[Size]:
    """The sizes of what is stored behind an object of ``size``."""
    while min(size) >= 2 * _SMALLEST:
        size = size[0] // 2, size[1] // 2
        yield size


def _halve(pixels: _Pixels) -> _Pixels:
    """Means of 2 x 2 pixels, rounded half up as OpenCV has them; an odd row or column at the end is left out."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    even = pixels[: 2 * height, : 2 * width].astype(np.uint16)
    rows = even[::2] + even[1::2]
    return ((rows[:, ::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)


def read_half(data: bytes, size: Size, target: Size) -> _Pixels | None:
    """The last half that pasting makes on its way from ``size`` to ``target``, or the last of them that is stored.

    Args:
        data: a cut-out's file.
        size: of the whole object.

    Returns:
        RGBA uint8 (h, w, 4), read only; None where the way has no half, or the file, of an older pool, has none.

    Raises:
        ValueError: what is behind the object is not its halves.
    """
    start = _end_of_whole(data)
    if start == len(data):
        return None
    stored = list(_halves(size))
    starts = list(itertools.accumulate((4 * h * w for h, w in stored), initial=start))
    if starts[-1] != len(data):
        raise ValueError(f"{len(data) - start} bytes of halves, not {starts[-1] - start}")
    passed = [half for half in stored if half[0] >= target[0] and half[1] >= target[1]]
    if not passed:
        return None
    (height, width), at = passed[-1], starts[len(passed) - 1]
    return np.frombuffer(data, np.uint8, 4 * height * width, at).reshape(height, width, 4)


def is_whole_cutout(path: str, size: Size) -> bool:
    """Whether the file ``path`` is there, with all of an object of ``size`` and, if it has any, all of its halves."""
    try:
        data = files.read_bytes(path)
    except UserError:
        return False
    behind = len(data) - _end_of_whole(data)
    return data[:4] == b"RIFF" and behind in (0, sum(4 * height * width for height, width in _halves(size)))


def without_halves(data: bytes) -> bytes:
    """The file of a cut-out as in older pools."""
    return data[: _end_of_whole(data)]


def has_its_halves(data: bytes, pixels: _Pixels) -> bool:
    """Whether behind an object, RGBA uint8 (H, W, 4), are its halves, or nothing as in older pools."""
    return data[_end_of_whole(data) :] in (b"", _behind(pixels))


def _end_of_whole(data: bytes) -> int:
    """Where the WebP image ends by its own word; in the oldest pools it is a PNG image, with nothing behind it."""
    return 8 + int.from_bytes(data[4:8], "little") if data[:4] == b"RIFF" else len(data)
