"""Pictures of annotated images: objects tinted and outlined."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

REAL, PASTED = (46, 134, 255), (255, 122, 0)  # blue and orange: told apart in any kind of colour vision
_TINT = 0.2  # weight of a mask's colour


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
    font = ImageFont.load_default(size=max(10, side // 32))
    for box, label, color in zip(boxes * scale, labels, colors, strict=True):
        drawing.rectangle(box.tolist(), outline=color)
        x, y = box[0], max(0.0, box[1] - font.size - 3)
        drawing.rectangle(drawing.textbbox((x + 2, y), label, font=font), fill=color)
        drawing.text((x + 2, y), label, fill=(255, 255, 255), font=font)
    return picture
