"""A trained network as a function: an image in, objects with names out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from detectron2_ext.data.images import read_image
from detectron2_ext.data.loader import build_test_transform
from detectron2_ext.distributed import named_device
from detectron2_ext.modeling.builder import build_detector
from detectron2_ext.modeling.described import DescribedWeights, last_checkpoint, read_described
from detectron2_ext.modeling.postprocessing import with_pasted_masks
from detectron2_ext.modeling.weights import load_weights
from detectron2_ext.structures import Instances
from exchange.errors import UserError

ImageLike = Image.Image | np.ndarray | str | os.PathLike[str]


@dataclass(frozen=True)
class Prediction:
    """The N objects of one image, best first, in pixels of the image as it stands upright.

    ``boxes`` float32 (N, 4) XYXY; ``masks`` bool (N, H, W); ``scores`` float32 (N,) in [0, 1]; ``category_ids`` int64
    (N,) and ``names``: as in the annotations that the network was trained on.
    """

    boxes: np.ndarray
    masks: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)


class Predictor:
    """Finds objects as the evaluation does: the averaged weights, images of the size that the network is tested at.

    ``device``: of torch; empty: a GPU if there is one. Raises UserError for weights that are not of their settings.
    """

    def __init__(self, weights: DescribedWeights, device: str = "") -> None:
        self.cfg = weights.cfg
        num_reported = len(weights.categories) - self.cfg.MODEL.ROI_HEADS.NUM_EXTRA_CLASSES
        self.categories = weights.categories[:num_reported]
        self.device = named_device(device)
        model = build_detector(self.cfg)
        load_weights(model, weights.path, use_ema=True, content=weights.content)
        self._model = model.to(self.device).eval().requires_grad_(False)
        self._transform = build_test_transform(self.cfg)

    @classmethod
    def from_run(cls, run: str | os.PathLike[str], device: str = "") -> Predictor:
        """The network of the last checkpoint in a run folder."""
        return cls(read_described(last_checkpoint(run)), device)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], device: str = "") -> Predictor:
        """The network of a checkpoint of a run, or of a file that ``mrca export`` wrote."""
        return cls(read_described(path), device)

    def __call__(self, image: ImageLike, min_score: float = 0.0) -> Prediction:
        """The objects of an image with at least ``min_score``.

        Args:
            image: a PIL image, pixels uint8 (H, W, 3) in the order RGB, or the path of a file.

        Raises:
            BadImage: the file cannot be read.
            UserError: the pixels are of another form.
        """
        return self.named(self.detect([pixels_of(image)])[0], min_score)

    def detect(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """What is found in each image, uint8 RGB (H, W, 3), as a batch: see :meth:`CenterNet2.detect`, on the CPU.

        Sums of a batch round otherwise than those of one image, in the last bits.
        """
        batch = [
            {"image": self._transform(image), "height": image.shape[0], "width": image.shape[1]}
            for image in images
        ]
        with torch.inference_mode():
            return [found.to("cpu") for found in self._model.detect(batch)]

    def named(self, found: Instances, min_score: float = 0.0) -> Prediction:
        """What was found, with names instead of class indices."""
        found = with_pasted_masks(found[found.scores >= min_score])
        categories = [self.categories[index] for index in found.pred_classes.tolist()]
        height, width = found.image_size
        masks = (
            found.pred_masks.numpy() if "pred_masks" in found else np.zeros((len(found), height, width), bool)
        )
        return Prediction(
            found.pred_boxes.numpy(),
            masks,
            found.scores.numpy(),
            np.array([category.id for category in categories], dtype=np.int64),
            [category.name for category in categories],
        )


def pixels_of(image: ImageLike) -> np.ndarray:
    """The pixels of an image as it stands upright: uint8 RGB (H, W, 3); see :meth:`Predictor.__call__`."""
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"an image is uint8 (H, W, 3) in the order RGB, not {image.dtype} {image.shape}")
    return np.array(image)  # torch wants memory that may be written to
