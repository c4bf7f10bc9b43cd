"""What names are written with in pictures."""

from __future__ import annotations

import functools
import importlib.util
import os

from PIL import ImageFont


@functools.cache
def label_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu, which has Latin, Greek and Cyrillic letters, where matplotlib brought it; else Pillow's own of ASCII."""
    matplotlib = importlib.util.find_spec("matplotlib")  # looked for, not imported: that takes a second
    if matplotlib and matplotlib.origin:
        folder = os.path.join(os.path.dirname(matplotlib.origin), "mpl-data", "fonts", "ttf")
        try:
            return ImageFont.truetype(os.path.join(folder, "DejaVuSans.ttf"), size)
        except OSError:
            pass  # a distribution's package that has its fonts elsewhere
    return ImageFont.load_default(size)
