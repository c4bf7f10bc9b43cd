"""The annotated objects of a batch as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detectron2_ext.structures import BitMasks, Instances


@dataclass(frozen=True)
class GroundTruth:
    """Objects of B images, padded to the same number G >= 1 per image with empty boxes that overlap nothing.

    ``boxes``: float32 (B, G, 4) XYXY pixels. ``classes``: int64 (B, G). ``counts``: objects of each image.
    ``masks``: one :class:`BitMasks` per image, or None where the data has no masks.
    """

    boxes: Tensor
    classes: Tensor
    counts: list[int]
    masks: list[BitMasks] | None

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device) -> GroundTruth:
        """From the ``gt_boxes``, ``gt_classes`` and, where there are any, ``gt_masks``."""
        one_more = instances[0].gt_classes.new_zeros(1)  # so that G is never 0
        classes = pad_sequence([one_more] + [image.gt_classes for image in instances], batch_first=True)[1:]
        no_box = instances[0].gt_boxes.new_zeros(1, 4)
        boxes = pad_sequence([no_box] + [image.gt_boxes for image in instances], batch_first=True)[1:]
        masks = None
        if all("gt_masks" in image for image in instances):
            masks = [
                image.gt_masks if isinstance(image.gt_masks, BitMasks) else BitMasks.from_full(image.gt_masks)
                for image in instances
            ]
            masks = [of_image.to(device, non_blocking=True) for of_image in masks]
        return cls(
            boxes.to(device, torch.float32, non_blocking=True),
            classes.to(device, non_blocking=True),
            [len(image) for image in instances],
            masks,
        )
