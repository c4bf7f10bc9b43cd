"""Laying cut-outs over a scene: augmentation, blending, and what that leaves of the objects below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional

from detectron2_ext.data.view import PASTED, ObjectMask, Scene, SceneObject, tighten


class CutoutAugmentation(Protocol):
    """Changes a cut-out."""

    def __call__(self, cutout: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """RGBA uint8 (h, w, 4) from the same, which is not written to."""


@dataclass(frozen=True)
class RandomMirror:
    """Exchanges left and right with a probability."""

    probability: float = 0.5

    def __call__(self, cutout: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return cv2.flip(cutout, 1) if rng.random() < self.probability else cutout


@dataclass(frozen=True)
class RandomRotation:
    """Turns by an angle in ± ``degrees`` (X-Paste: 30); the cut-out grows to hold all of the object."""

    degrees: float = 30.0

    def __call__(self, cutout: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = cutout.shape[:2]
        turn = cv2.getRotationMatrix2D(
            ((width - 1) / 2, (height - 1) / 2), rng.uniform(-self.degrees, self.degrees), 1.0
        )
        cosine, sine = np.abs(turn[0, :2])
        new_width = int(np.ceil(width * cosine + height * sine))
        new_height = int(np.ceil(height * cosine + width * sine))
        turn[:, 2] += (new_width - width) / 2, (new_height - height) / 2
        size = new_width, new_height
        # at the border, too, an object keeps its own colours
        turned = cv2.warpAffine(cutout, turn, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        turned[..., 3] = cv2.warpAffine(cutout[..., 3], turn, size, flags=cv2.INTER_LINEAR)
        tight = tighten(np.ascontiguousarray(turned[..., 3]))
        if tight is None:
            return cutout
        left, top, right, bottom = tight.box
        return turned[top:bottom, left:right]


@dataclass(frozen=True)
class RandomColor:
    """With a probability, jitters brightness, contrast, saturation (factors 1 ± ``strength``) and hue (±
    ``strength`` turns): X-Paste's ``ColorJitter(0.2, 0.2, 0.2, 0.2, p=0.5)``."""

    strength: float = 0.2
    probability: float = 0.5

    def __call__(self, cutout: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return cutout
        brightness, contrast, saturation = (1 + rng.uniform(-self.strength, self.strength, size=3)).tolist()
        pixels = torch.from_numpy(np.ascontiguousarray(cutout[..., :3])).permute(2, 0, 1)
        pixels = functional.adjust_brightness(pixels, brightness)
        pixels = functional.adjust_contrast(pixels, contrast)
        pixels = functional.adjust_saturation(pixels, saturation)
        pixels = functional.adjust_hue(pixels, rng.uniform(-self.strength, self.strength))
        return np.dstack([pixels.permute(1, 2, 0).numpy(), cutout[..., 3]])


# A blend writes into ``window``, uint8 RGB (h, w, 3), a view of the image; ``cutout`` is RGBA uint8 (h, w, 4)
# and ``mask`` uint8 (h, w), 1 where the object is.
Blend = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def basic(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """The object's pixels replace the image's."""
    cv2.copyTo(cv2.cvtColor(cutout, cv2.COLOR_RGBA2RGB), mask, window)


def alpha(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """Weighted by the cut-out's alpha."""
    _mix(window, cutout, (cutout[..., 3] * mask).astype(np.float32) / 255)


def gaussian(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """Weighted by the mask, smoothed with a Gaussian of 5 x 5 pixels."""
    weight = cv2.GaussianBlur(mask.astype(np.float32), (5, 5), 0, borderType=cv2.BORDER_CONSTANT)
    _mix(window, cutout, weight)


def poisson(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """The object's gradients with the image's colours around it (Pérez et al., Poisson Image Editing,
    2003)."""
    left, top, width, height = cv2.boundingRect(mask)
    if width < 3 or height < 3:  # nothing inside the border that the equation could solve for
        basic(window, cutout, mask)
        return
    # the solver needs a pixel of image on every side of the mask
    framed = [
        cv2.copyMakeBorder(np.ascontiguousarray(part), 2, 2, 2, 2, border)
        for part, border in (
            (cutout[..., :3], cv2.BORDER_REPLICATE),
            (window, cv2.BORDER_REPLICATE),
            (mask * 255, cv2.BORDER_CONSTANT),
        )
    ]
    center = (2 + left + width // 2, 2 + top + height // 2)
    cloned = cv2.seamlessClone(*framed, center, cv2.NORMAL_CLONE)
    np.copyto(window, cloned[2:-2, 2:-2], where=mask[..., None].astype(bool))


def _mix(window: np.ndarray, cutout: np.ndarray, weight: np.ndarray) -> None:
    weight = weight[..., None]
    np.copyto(
        window, np.rint(window + weight * (cutout[..., :3].astype(np.float32) - window)).astype(np.uint8)
    )


BLENDS: dict[str, Blend] = {
    "basic": basic,
    "alpha": alpha,
    "gaussian": gaussian,
    "poisson": poisson,
    "possion": poisson,  # the spelling of X-Paste's configuration files
}


def resize_cutout(cutout: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a cut-out, RGBA uint8 (h, w, 4), to ``size`` (height, width), without skipping pixels."""
    height, width = size
    while cutout.shape[0] >= 2 * height and cutout.shape[1] >= 2 * width:
        half = cutout.shape[0] // 2, cutout.shape[1] // 2
        even = cutout[: 2 * half[0], : 2 * half[1]]  # OpenCV averages fast at exactly one half
        cutout = cv2.resize(even, half[::-1], interpolation=cv2.INTER_AREA)
    return cv2.resize(cutout, (width, height), interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Occlusion:
    """What is left of an object under others.

    It goes if a side of its mask's box moved by more than ``moved_box`` pixels and ``few_pixels`` or fewer of
    its pixels are left, or if none is. The defaults are X-Paste's, for images of 640 pixels.
    """

    moved_box: int = 10
    few_pixels: int = 300

    def __call__(self, below: SceneObject, cover: ObjectMask) -> SceneObject | None:
        """``below`` itself if ``cover`` takes no pixel of it, else the rest with its tight box; None if it goes."""
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
        moved = max(abs(new - old) for new, old in zip(rest.box, below.mask.box, strict=True))
        if moved > self.moved_box and cv2.countNonZero(rest.crop) <= self.few_pixels:
            return None
        return SceneObject(rest.box, rest, below.class_index, below.source)


RELEASED = Occlusion()


def overlay(
    scene: Scene,
    cutout: np.ndarray,
    x: int,
    y: int,
    class_index: int,
    blend: Blend,
    occlude: Occlusion = RELEASED,
) -> bool:
    """Lay a cut-out, RGBA (h, w, 4), over a scene with its top left pixel at (x, y), in place.

    The part outside the image is cut off. Its mask is where alpha is above 0. Objects below lose the pixels
    that it covers. Returns whether a pixel of it shows; if none does, the scene stays as it was.
    """
    height, width = scene.size
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + cutout.shape[1], width), min(y + cutout.shape[0], height)
    if left >= right or top >= bottom:
        return False
    shown = cutout[top - y : bottom - y, left - x : right - x]
    shape = (shown[..., 3] > 0).astype(np.uint8)
    mask = tighten(shape, left, top)
    if mask is None:
        return False
    blend(scene.image[top:bottom, left:right], shown, shape)
    put_on_top(scene, [SceneObject(mask.box, mask, class_index, PASTED)], mask, occlude)
    return True


def put_on_top(
    scene: Scene, objects: Sequence[SceneObject], cover: ObjectMask, occlude: Occlusion = RELEASED
) -> None:
    """Add objects in front of those of a scene, which lose the pixels under ``cover``, the new ones'
    union."""
    remaining = (occlude(below, cover) for below in scene.objects)
    scene.objects = [below for below in remaining if below is not None] + list(objects)
