"""Random changes to a cut-out after it has its final size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional

from detectron2_ext.data.rasterize import tighten


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
        turned = cv2.warpAffine(
            cutout, turn, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )  # at the border, too, an object keeps its own colours
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
