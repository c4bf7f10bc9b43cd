"""One training image while it is being put together: pixels and objects as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from detectron2_ext.data.rasterize import ObjectMask
from detectron2_ext.structures import BitMasks, Instances

REAL, PASTED = 0, 1


@dataclass
class SceneObject:
    """An object: XYXY ``box`` in pixels, its visible part as ``mask``, its class index and its source."""

    box: tuple[float, float, float, float]
    mask: ObjectMask
    class_index: int
    source: int = REAL


@dataclass
class Scene:
    """``image``: uint8 RGB (H, W, 3), written in place; ``objects``: from back to front."""

    image: np.ndarray
    objects: list[SceneObject]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    def grow(self, size: tuple[int, int]) -> None:
        """Extend the image to the right and downwards, in black, to at least ``size`` (height, width)."""
        below, beside = (max(0, new - old) for new, old in zip(size, self.size, strict=True))
        if below or beside:
            self.image = np.pad(self.image, ((0, below), (0, beside), (0, 0)))

    def instances(self) -> Instances:
        """The objects as ``gt_boxes``, ``gt_classes``, ``gt_masks`` and ``instance_source``."""
        objects = self.objects
        corners = [scene_object.mask.box for scene_object in objects]
        height = max((y2 - y1 for _, y1, _, y2 in corners), default=0)
        width = max((x2 - x1 for x1, _, x2, _ in corners), default=0)
        crops = np.zeros((len(objects), height, width), np.uint8)
        for target, scene_object in zip(crops, objects, strict=True):
            crop = scene_object.mask.crop
            target[: crop.shape[0], : crop.shape[1]] = crop
        boxes = torch.tensor(corners, dtype=torch.int64).reshape(-1, 4)
        return Instances(
            self.size,
            gt_boxes=torch.tensor([o.box for o in objects], dtype=torch.float32).reshape(-1, 4),
            gt_classes=torch.tensor([o.class_index for o in objects], dtype=torch.int64),
            gt_masks=BitMasks(torch.from_numpy(crops), boxes, self.size),
            instance_source=torch.tensor([o.source for o in objects], dtype=torch.int64),
        )
