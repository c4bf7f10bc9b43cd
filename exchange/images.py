"""The images of a pool as files: RGBA pixels out of them, and PNG files that carry a record."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from exchange import files
from exchange.errors import UserError
from exchange.typed import from_record

MAX_SIDE = 16_383  # the most that WebP holds
MAX_PIXELS = 64_000_000
_PNG_END = b"IEND\xaeB`\x82"  # the last eight bytes of every whole PNG file
_RECORD = "mrca"
_DAMAGES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for one
_LYING = (5, 6, 7, 8)  # orientations in EXIF by which height and width change places
_Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


class BadImage(Exception):
    """An image that cannot be used: missing, damaged, larger than allowed, or not what it should show; the text says
    which and why."""


def read_rgba(path: str) -> _Pixels:
    """The image in ``path`` as uint8 (H, W, 4); alpha is 255 where the file has none. Raises BadImage."""
    return decode_rgba(read_file(path), path)


def decode_rgba(data: bytes, name: str) -> _Pixels:
    """The same from the content of a file, which an error calls ``name``."""
    with _opened(data, name) as image:
        if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{name} claims {image.width} x {image.height} pixels")
        return np.asarray(_eight_bits(image).convert("RGBA"))


def try_rgba(path: str) -> _Pixels | None:
    """The image in ``path`` as :func:`read_rgba` gives it; None for one that cannot be used."""
    try:
        return read_rgba(path)
    except BadImage:
        return None


def read_upright(path: str, size: tuple[int, int]) -> _Pixels:
    """A photograph, turned as its EXIF orientation asks: RGB uint8 (H, W, 3).

    ``size``: (height, width) that its annotation says. Raises BadImage, also where it has another.
    """
    with _opened(read_file(path), path) as image:
        width, height = image.size
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if orientation in _LYING:
            width, height = height, width
        if (height, width) != size:
            raise BadImage(f"{path} has {width} x {height} pixels, not {size[1]} x {size[0]} as annotated")
        # Without the rest of the EXIF data, which may be damaged and would be written anew.
        pixels = Image.fromarray(np.asarray(_eight_bits(image).convert("RGB")))
    pixels.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(pixels))


def read_file(path: str) -> bytes:
    """The content of a file. Raises BadImage where there is none."""
    try:
        return files.read_bytes(path)
    except UserError as error:
        raise BadImage(str(error)) from error


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image, of which only the head has been read; what Pillow raises for a damaged one becomes BadImage."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except _DAMAGES as error:
        raise BadImage(f"{name} does not decode: {error}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits by their upper eight, as OpenCV reads them: Pillow would make white of all above 255."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I") else image


def encode_png(pixels: _Pixels, record: dict[str, Any] | None = None) -> bytes:
    """A PNG file of ``pixels``, uint8 (H, W, 3 or 4) or a mask (H, W), which carries ``record`` as JSON.

    Run-length encoding suits masks: smaller files than zlib's default strategy writes, in 0.6 of the time. Their
    records are compressed, too, since they hold the outlines.
    """
    is_mask, info, buffer = pixels.ndim == 2, PngInfo(), io.BytesIO()
    if record is not None:
        info.add_text(_RECORD, json.dumps(record, allow_nan=False), zip=is_mask)
    options = {"compress_type": zlib.Z_RLE} if is_mask else {}
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info, **options)
    return buffer.getvalue()


def read_record(kind: type[T], path: str) -> T | None:
    """The record in a PNG file as the dataclass ``kind``; None if there is no such file, it is not whole, or what it
    carries is no such record."""
    try:
        with files.open_to_read(path) as file:  # no more than the two ends of it
            with Image.open(file, formats=("PNG",)) as image:
                record = json.loads(image.info[_RECORD])
                file.seek(-len(_PNG_END), io.SEEK_END)
                return from_record(kind, record) if file.read() == _PNG_END else None
    except (*_DAMAGES, UserError, KeyError, RecursionError):
        return None
