"""Other colours for the objects of some classes where they are (X-Paste's INPUT.USE_COLOR_JITTER)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional

from detectron2_ext.data.view import Scene, union

Recoloring = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # uint8 RGB (H, W, 3) to the same


class RecolorObjects:
    """Recolours a scene where objects of some classes are.

    Args:
        chosen: bool (C,), the classes.
        recolor: of the whole image, whose other pixels stay as they are.
    """

    def __init__(self, chosen: np.ndarray, recolor: Recoloring) -> None:
        self._chosen, self._recolor = chosen, recolor

    def __call__(self, scene: Scene, rng: np.random.Generator) -> None:
        """Change ``scene`` in place."""
        objects = [scene_object for scene_object in scene.objects if self._chosen[scene_object.class_index]]
        if not objects:
            return
        cover = union([scene_object.mask for scene_object in objects])
        x1, y1, x2, y2 = cover.box
        recolored = self._recolor(scene.image, rng)[y1:y2, x1:x2]
        np.copyto(scene.image[y1:y2, x1:x2], recolored, where=cover.crop[..., None].astype(bool))


@dataclass(frozen=True)
class PhotometricDistortion:
    """SSD's distortion (Liu et al., 2016) with the ranges of X-Paste, on values of 0 to 255.

    ``brightness`` is added; ``contrast`` multiplies all channels, before or after what follows; ``saturation``
    multiplies HSV's, ``hue`` is added to its angle in degrees; ``channels`` is their new order. What leaves 0 to 255
    at the end is cut off.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    saturation: float = 1.0
    hue: float = 0.0
    channels: tuple[int, int, int] = (0, 1, 2)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> PhotometricDistortion:
        """Each of the five with probability 1/2: ± 32, 0.5 to 1.5, 0.5 to 1.5, ± 18 degrees, any order."""
        first, *does = (rng.random(6) < 0.5).tolist()
        low, high = np.array([[-32, 32], [0.5, 1.5], [0.5, 1.5], [-18, 18]]).T
        drawn = np.where(does[:4], rng.uniform(low, high), [0, 1, 1, 0]).tolist()
        brightness, contrast, saturation, hue = drawn
        channels = tuple(rng.permutation(3).tolist()) if does[4] else (0, 1, 2)
        return cls(brightness, contrast, first, saturation, hue, channels)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) from the same."""
        pixels = image.astype(np.float32) + np.float32(self.brightness)
        if self.contrast_first:
            pixels *= self.contrast
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 1] *= self.saturation
        hsv[..., 0] = (hsv[..., 0] + self.hue) % 360
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if not self.contrast_first:
            pixels *= self.contrast
        return np.clip(pixels[..., self.channels], 0, 255).astype(np.uint8)


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random :class:`PhotometricDistortion`."""
    return PhotometricDistortion.draw(rng)(image)


def color_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """torchvision's ``ColorJitter(0.5, 0.5, 0.5, 0.3)``: its four adjustments in random order."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    steps = [
        (functional.adjust_brightness, rng.uniform(0.5, 1.5)),
        (functional.adjust_contrast, rng.uniform(0.5, 1.5)),
        (functional.adjust_saturation, rng.uniform(0.5, 1.5)),
        (functional.adjust_hue, rng.uniform(-0.3, 0.3)),
    ]
    for place in rng.permutation(len(steps)).tolist():
        adjust, amount = steps[place]
        pixels = adjust(pixels, amount)
    return pixels.permute(1, 2, 0).numpy()
