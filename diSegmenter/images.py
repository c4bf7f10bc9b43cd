"""Generated images, alpha masks and cut-outs as files."""

import io

import numpy as np
from PIL import Image

from exchange import files
from exchange.errors import UserError

MAX_SIDE = 16_383  # the most that WebP holds
MAX_PIXELS = 64_000_000
_PNG_END = b"IEND\xaeB`\x82"


class UnreadableImage(Exception):
    """The file is missing, damaged, cut off, or claims to be larger than MAX_SIDE or MAX_PIXELS allow."""


def read_rgba(path: str) -> np.ndarray:
    """The image in ``path`` as uint8 (H, W, 4); alpha is 255 where the file has none."""
    try:
        data = files.read_bytes(path)
    except UserError as error:
        raise UnreadableImage(str(error)) from error
    return decode_rgba(data, path)


def decode_rgba(data: bytes, path: str) -> np.ndarray:
    """The image in ``data`` as uint8 (H, W, 4); ``path`` says in a message where it comes from."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{path} claims {image.width} x {image.height} pixels")
            return np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} does not decode: {error}") from error


def write_alpha(path: str, alpha: np.ndarray) -> None:
    """Writes a uint8 (H, W) mask as an 8-bit PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, format="PNG")
    files.write_bytes(path, buffer.getvalue())


def encode_cutout(image: np.ndarray, alpha: np.ndarray, bbox: list[int]) -> bytes:
    """The box ``bbox`` (XYWH) of ``image``, uint8 (H, W, 3 or more), with ``alpha`` (H, W), as lossless WebP.

    Method 0 of WebP's encoder decodes twice as fast as PNG and takes less space; the higher ones gain a tenth
    in size and take thirty times as long. Colours under alpha 0 are kept, since resizing blends them in.
    """
    x, y, width, height = bbox
    window = np.s_[y : y + height, x : x + width]
    buffer = io.BytesIO()
    cutout = Image.fromarray(np.dstack([image[window][..., :3], alpha[window]]))
    cutout.save(buffer, format="WEBP", lossless=True, exact=True, method=0)
    return buffer.getvalue()


def is_whole(path: str) -> bool:
    """Whether the PNG or WebP file ``path`` is there and ends where it should."""
    try:
        data = files.read_bytes(path)
    except UserError:
        return False
    if data[:4] == b"RIFF":
        return len(data) == 8 + int.from_bytes(data[4:8], "little")
    return data.endswith(_PNG_END)
