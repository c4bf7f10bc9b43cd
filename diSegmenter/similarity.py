"""How much a cut-out looks like the real objects of its class (DiverGen; Fan et al., 2024): image features compared.

filter.py holds it against the threshold; real_objects.py has the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor

from diSegmenter.pretrained import load_pretrained
from exchange.errors import UserError

Surroundings = Callable[[np.ndarray], np.ndarray]
_KERNEL = (10, 10)  # pixels that are averaged


def blurred(pixels: np.ndarray) -> np.ndarray:
    """Surroundings as they are, out of focus: a box filter of 10 x 10 pixels."""
    return cv2.blur(pixels, _KERNEL)


def white(pixels: np.ndarray) -> np.ndarray:
    """None."""
    return np.full_like(pixels, 255)


SURROUNDINGS: dict[str, Surroundings] = {"blur": blurred, "white": white}


class Framing:
    """What is looked at of an object: its box and some pixels around it, as far as the image goes.

    Args:
        padding: pixels on each side of the box.
        surroundings: from pixels, uint8 (h, w, 3), to those that stand outside of the object.
    """

    def __init__(self, padding: int, surroundings: Surroundings) -> None:
        self._padding, self._surroundings = padding, surroundings

    def __call__(self, image: np.ndarray, opacity: np.ndarray, box: Sequence[int]) -> np.ndarray:
        """The object: uint8 (h, w, 3).

        Args:
            image: uint8 (H, W, 3 or more).
            opacity: of the object, uint8 (H, W).
            box: XYWH inside of the image, in whole pixels.
        """
        x, y, width, height = box
        rows = slice(max(y - self._padding, 0), y + height + self._padding)
        columns = slice(max(x - self._padding, 0), x + width + self._padding)
        pixels = np.ascontiguousarray(image[rows, columns, :3])
        share = opacity[rows, columns, None].astype(np.float32) / 255
        return np.rint(share * pixels + (1 - share) * self._surroundings(pixels)).astype(np.uint8)


class ImageEncoder:
    """Features of pictures.

    Args:
        model: has ``get_image_features`` (CLIP, SigLIP), or gives a ``pooler_output`` (DINOv2).
        processor: its image processor.
        name: of the model, for the message.
    """

    def __init__(self, model: nn.Module, processor: Any, device: torch.device, name: str) -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._features = getattr(model, "get_image_features", model)
        self._processor, self._device, self._name = processor, device, name

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors, float32 (N, D), of uint8 (H, W, 3) each. Raises UserError where the model has none."""
        images = [torch.from_numpy(picture).to(self._device).permute(2, 0, 1) for picture in pictures]
        inputs = self._processor(images=images, return_tensors="pt").to(self._device)
        features = getattr(self._features(**inputs), "pooler_output", None)
        if features is None:
            raise UserError(
                f"{self._name} has no feature of an image as a whole: set SEGMENTER.SIMILARITY_MODEL to a CLIP "
                "or DINOv2"
            )
        return F.normalize(features.float(), dim=-1).cpu().numpy()


class Similarity:
    """Compares cut-outs with the real objects of their classes.

    Args:
        means: mean of the features of each category's real objects, (D,), by category id. The product with it is
            the mean of the cosines.
    """

    def __init__(self, encode: ImageEncoder, framing: Framing, means: Mapping[int, np.ndarray]) -> None:
        self._encode, self._framing, self._means = encode, framing, means

    def __call__(
        self, images: Sequence[np.ndarray], alphas: Sequence[np.ndarray], category_ids: Sequence[int]
    ) -> list[float | None]:
        """The mean cosine of each; None where the category has no real object.

        Args:
            images: uint8 (H, W, 3 or more) each.
            alphas: uint8 (H, W) each, not all 0.
        """
        found: list[float | None] = [None] * len(images)
        places = [place for place, category in enumerate(category_ids) if category in self._means]
        if places:
            features = self._encode(
                [self._framing(images[i], alphas[i], cv2.boundingRect(alphas[i])) for i in places]
            )
            for place, feature in zip(places, features, strict=True):
                found[place] = float(feature @ self._means[category_ids[place]])
        return found


def load_image_encoder(name: str, revision: str, device: torch.device) -> ImageEncoder:
    """Loads the model ``name``, a folder or a hub name; raises UserError where that fails."""
    what, key = "model of image features", "SEGMENTER.SIMILARITY_MODEL"
    return ImageEncoder(*load_pretrained(name, revision, AutoImageProcessor, what, key), device, name)
