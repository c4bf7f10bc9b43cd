"""Pictures of annotated images: objects tinted and outlined."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from exchange.fonts import label_font

REAL, PASTED = (46, 134, 255), (255, 122, 0)  # blue and orange: told apart in any kind of colour vision
_TINT = 0.2  # weight of a mask's colour
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom


def class_color(class_index: int) -> tuple[int, int, int]:
    """A colour that differs from those of neighbouring classes: hues a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb(class_index * 0.618034 % 1, 0.8, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    side: int = 400,
) -> Image.Image:
    """An image enlarged or shrunk to fit ``side`` pixels, with tinted and outlined masks, boxes and labels.

    ``image``: uint8 RGB (H, W, 3); ``boxes``: (N, 4) XYXY; ``masks``: bool (N, H, W).
    """
    scale = side / max(image.shape[:2])
    size = [max(1, round(extent * scale)) for extent in image.shape[1::-1]]
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    pixels = np.array(Image.fromarray(image).resize(size, filter_))
    for mask, color in zip(masks, colors, strict=True):
        enlarged = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside = enlarged > 0
        pixels[inside] = (1 - _TINT) * pixels[inside] + _TINT * np.array(color)
        outline, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(pixels, outline, -1, color, thickness=2)
    picture = Image.fromarray(pixels)
    drawing = ImageDraw.Draw(picture)
    font = label_font(max(10, side // 32))
    for box, color in zip(boxes * scale, colors, strict=True):
        drawing.rectangle(box.tolist(), outline=color)
    taken: list[Rectangle] = []
    for box, label, color in zip(boxes * scale, labels, colors, strict=True):
        width, height = drawing.textlength(label, font=font) + 4, font.size + 4
        taken.append(free_place(box[0], box[1] - height, width, height, picture.size, taken))
        x, y, right, bottom = taken[-1]
        drawing.rectangle((x, y, right - 1, bottom - 1), fill=color)
        drawing.text((x + 2, y + 1), label, fill=(255, 255, 255), font=font)
    return picture


def free_place(
    x: float, y: float, width: float, height: float, size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """A place of that size in a picture of ``size``, as near to (x, y) as may be without covering one that is taken.

    It moves up and down alone, so that a label stays with its box; where everything is taken, it stays at (x, y).
    """
    x = max(0.0, min(x, size[0] - width))
    beside = [(top, bottom) for left, top, right, bottom in taken if x < right and left < x + width]
    above = below = min(max(y, 0.0), size[1] - height)
    for top, bottom in sorted(beside):
        if top < below + height:
            below = max(below, bottom)
    for top, bottom in sorted(beside, key=lambda rows: -rows[1]):
        if above < bottom:
            above = min(above, top - height)
    rows = [row for row in (above, below) if 0 <= row <= size[1] - height]
    row = min(rows, key=lambda row: abs(row - y), default=max(y, 0.0))
    return x, row, x + width, row + height
