"""Laying objects over a scene, and what that leaves of the objects below."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from detectron2_ext.data.blend import Blend
from detectron2_ext.data.rasterize import ObjectMask, tighten
from detectron2_ext.data.scene import PASTED, Scene, SceneObject

ASPECT_JITTER = 0.2  # a cut-out's aspect ratio is multiplied by 1 ± this
SMALLEST_SIDE = 5  # pixels: a smaller object is not pasted
MOVED_BOX = 10  # pixels: an object below goes if a side of its box moved by more than this …
FEW_PIXELS = 300  # … and this many of its pixels, or fewer, are left


def draw_object_size(
    cutout_size: tuple[int, int],
    area_root: float | None,
    image_size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """(height, width) of an object whose box gets ``area_root² H W`` pixels, with jittered aspect.

    With ``area_root`` None it keeps the cut-out's number of pixels. None where a side is under 5 pixels, or
    not smaller than the image's. All sizes are (height, width).
    """
    ratio = cutout_size[1] / cutout_size[0] * rng.uniform(1 - ASPECT_JITTER, 1 + ASPECT_JITTER)
    if area_root is None:
        pixels = cutout_size[0] * cutout_size[1]
    else:
        pixels = area_root**2 * image_size[0] * image_size[1]
    width_exact = np.sqrt(pixels * ratio)
    width, height = int(width_exact), int(width_exact / ratio)
    if SMALLEST_SIDE <= width < image_size[1] and SMALLEST_SIDE <= height < image_size[0]:
        return height, width
    return None


def resize_cutout(cutout: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a cut-out, RGBA uint8 (h, w, 4), to ``size`` (height, width), without skipping pixels."""
    height, width = size
    while cutout.shape[0] >= 2 * height and cutout.shape[1] >= 2 * width:
        half = cutout.shape[0] // 2, cutout.shape[1] // 2
        even = cutout[: 2 * half[0], : 2 * half[1]]  # OpenCV averages fast at exactly one half
        cutout = cv2.resize(even, half[::-1], interpolation=cv2.INTER_AREA)
    return cv2.resize(cutout, (width, height), interpolation=cv2.INTER_LINEAR)


def draw_position(
    image_size: tuple[int, int], object_size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """Top left pixel (x, y) of an object of (height, width) whose centre is anywhere in the image."""
    y, x = (
        int(np.floor(rng.uniform(0, extent) - length / 2 + 0.5))
        for extent, length in zip(image_size, object_size, strict=True)
    )
    return x, y


def overlay(scene: Scene, cutout: np.ndarray, x: int, y: int, class_index: int, blend: Blend) -> int:
    """Lay a cut-out, RGBA (h, w, 4), over a scene with its top left pixel at (x, y), in place.

    The part outside the image is cut off. Its mask is where alpha is above 0. Objects below lose the pixels
    that it covers. Returns the number of pixels that show; with 0 the scene stays as it was.
    """
    height, width = scene.size
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + cutout.shape[1], width), min(y + cutout.shape[0], height)
    if left >= right or top >= bottom:
        return 0
    shown = cutout[top - y : bottom - y, left - x : right - x]
    shape = (shown[..., 3] > 0).astype(np.uint8)
    mask = tighten(shape, left, top)
    if mask is None:
        return 0
    blend(scene.image[top:bottom, left:right], shown, shape)
    put_on_top(scene, [SceneObject(mask.box, mask, class_index, PASTED)], mask)
    return cv2.countNonZero(mask.crop)


def put_on_top(scene: Scene, objects: Sequence[SceneObject], cover: ObjectMask) -> None:
    """Add objects in front of those of a scene, which lose the pixels under ``cover``, the new ones'
    union."""
    remaining = (occlude(below, cover) for below in scene.objects)
    scene.objects = [below for below in remaining if below is not None] + list(objects)


def occlude(below: SceneObject, cover: ObjectMask) -> SceneObject | None:
    """What is left of an object under a mask.

    An object that loses no pixel stays as it is. Otherwise its box becomes that of the remaining pixels, and
    it goes (None) if a side of its mask's box moved by more than 10 pixels and 300 or fewer pixels are left,
    or if none is.
    """
    x1, y1, x2, y2 = below.mask.box
    cover_x1, cover_y1, cover_x2, cover_y2 = cover.box
    left, top, right, bottom = max(x1, cover_x1), max(y1, cover_y1), min(x2, cover_x2), min(y2, cover_y2)
    if left >= right or top >= bottom:
        return below
    over = cover.crop[top - cover_y1 : bottom - cover_y1, left - cover_x1 : right - cover_x1]
    under = np.s_[top - y1 : bottom - y1, left - x1 : right - x1]
    if not (below.mask.crop[under] & over).any():
        return below
    crop = below.mask.crop.copy()
    crop[under] &= 1 - over
    rest = tighten(crop, x1, y1)
    if rest is None:
        return None
    moved = max(abs(new - old) for new, old in zip(rest.box, below.mask.box, strict=True)) > MOVED_BOX
    if moved and cv2.countNonZero(rest.crop) <= FEW_PIXELS:
        return None
    return SceneObject(rest.box, rest, below.class_index, below.source)
