"""From the bytes of an image file to pixels."""

from __future__ import annotations

import cv2
import numpy as np

from exchange.images import BadImage, read_file

_REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}
_TO_RGBA = {1: cv2.COLOR_GRAY2RGBA, 3: cv2.COLOR_BGR2RGBA, 4: cv2.COLOR_BGRA2RGBA}


def read_image(path: str, size: tuple[int, int] | None = None, shrink: float = 1.0) -> np.ndarray:
    """Read a JPEG, PNG, … to RGB, turned upright as its EXIF orientation asks: uint8 (h, w, 3).

    Args:
        path: of the file, or its URL.
        size: (height, width) of the upright image according to its annotation; None: whatever it is.
        shrink: factor that the image will be resized by. Below 1/2 a JPEG is decoded at 1/2, 1/4 or 1/8 of
            its size, still no smaller than needed: the decoder then averages, which also prevents aliasing.

    Raises:
        BadImage: there is no file, it does not decode, ends too early, or has another size.
    """
    data = read_file(path)
    is_jpeg = data[:2] == b"\xff\xd8"
    if is_jpeg and b"\xff\xd9" not in data[-65536:]:
        raise BadImage(f"{path}: the JPEG ends too early")
    factor = 1
    while is_jpeg and factor < 8 and shrink * factor * 2 <= 1:
        factor *= 2
    image = _decode(data, _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB))
    if image is None:
        raise BadImage(f"{path}: not an image, or damaged")
    if size and image.shape[:2] != tuple(-(-extent // factor) for extent in size):
        height, width = (extent * factor for extent in image.shape[:2])
        raise BadImage(f"{path}: {width} x {height} pixels, but the annotations say {size[1]} x {size[0]}")
    return image


def read_gray(path: str) -> np.ndarray:
    """Read a single-channel image: uint8 (h, w). Raises BadImage."""
    image = _decode(read_file(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise BadImage(f"{path}: not an image, or damaged")
    return image


def read_rgba(path: str) -> np.ndarray:
    """Read an image as RGBA, uint8 (h, w, 4), opaque if it has no alpha. Raises BadImage."""
    return decode_rgba(read_file(path), path)


def decode_rgba(data: bytes, name: str) -> np.ndarray:
    """The same from the content of a file, which an error calls ``name``."""
    image = _decode(data, cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        raise BadImage(f"{name}: not an image of 8 bits per channel, or damaged")
    channels = 1 if image.ndim == 2 else image.shape[2]
    return cv2.cvtColor(image, _TO_RGBA[channels])


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if data else None
