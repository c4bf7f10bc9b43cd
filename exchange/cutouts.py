"""A cut-out on disk: the object as a lossless WebP image, and behind it, in the same file, its halves.

Pasting averages an object by halves until it is less than twice as large as it is to be, and most objects are pasted
small: where the half that this ends at is stored, nothing larger is decoded. A program that knows WebP alone sees the
whole object.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from exchange import files
from exchange.errors import UserError

_SMALLEST = 16  # pixels of a stored half's shorter side: what is smaller is made in no time
_Pixels = npt.NDArray[np.uint8]


def encode_cutout(image: _Pixels, alpha: _Pixels, bbox: list[int]) -> bytes:
    """The box ``bbox`` (XYWH) of ``image``, uint8 (H, W, 3 or more), with ``alpha`` (H, W), and its halves.

    Method 0 of WebP's encoder decodes twice as fast as PNG and takes less space; the higher ones gain a tenth
    in size and take thirty times as long. Colours under alpha 0 are kept, since resizing blends them in.
    """
    x, y, width, height = bbox
    window = np.s_[y : y + height, x : x + width]
    pixels = np.dstack([image[window][..., :3], alpha[window]])
    buffer = io.BytesIO()
    while True:
        Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True, exact=True, method=0)
        if min(pixels.shape[:2]) < 2 * _SMALLEST:
            return buffer.getvalue()
        pixels = _halve(pixels)


def _halve(pixels: _Pixels) -> _Pixels:
    """Means of 2 x 2 pixels, rounded half up as OpenCV has them; an odd row or column at the end is left out."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    even = pixels[: 2 * height, : 2 * width].astype(np.uint16)
    rows = even[::2] + even[1::2]
    return ((rows[:, ::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)


def split_cutout(data: bytes) -> list[bytes]:
    """The images in a cut-out's file, each half as large as the one before: one in older pools.

    The last one ends where the file ends, whether it is whole or not.
    """
    images: list[bytes] = []
    start = 0
    while start < len(data) or not images:
        is_webp = data[start : start + 4] == b"RIFF"
        end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little") if is_webp else len(data)
        images.append(data[start:end])
        start = end
    return images


def is_whole_cutout(path: str) -> bool:
    """Whether the file ``path`` is there and each WebP image in it as long as it says."""
    try:
        last = split_cutout(files.read_bytes(path))[-1]
    except UserError:
        return False
    return last[:4] == b"RIFF" and len(last) == 8 + int.from_bytes(last[4:8], "little")
