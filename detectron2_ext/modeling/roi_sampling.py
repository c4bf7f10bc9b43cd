"""Which boxes the heads learn from, and what each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detectron2_ext.modeling.boxes import iou
from detectron2_ext.structures import BitMasks, Instances


@dataclass(frozen=True)
class GroundTruth:
    """Objects of B images, padded to the same number G >= 1 per image with empty boxes that overlap nothing.

    ``boxes``: float32 (B, G, 4) XYXY pixels. ``classes``: int64 (B, G). ``counts``: objects of each image.
    ``pasted``: bool (B, G), False where the data does not say. ``masks``: one :class:`BitMasks` per image, or None
    where the data has no masks.
    """

    boxes: Tensor
    classes: Tensor
    counts: list[int]
    pasted: Tensor
    masks: list[BitMasks] | None

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device) -> GroundTruth:
        """From the ``gt_boxes``, ``gt_classes`` and, where there are any, ``instance_source`` and ``gt_masks``."""
        one_more = instances[0].gt_classes.new_zeros(1)  # so that G is never 0
        classes = pad_sequence([one_more] + [image.gt_classes for image in instances], batch_first=True)[1:]
        no_box = instances[0].gt_boxes.new_zeros(1, 4)
        boxes = pad_sequence([no_box] + [image.gt_boxes for image in instances], batch_first=True)[1:]
        sources = [
            image.instance_source if "instance_source" in image else torch.zeros_like(image.gt_classes)
            for image in instances
        ]
        pasted = pad_sequence([one_more, *sources], batch_first=True)[1:] != 0
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
            pasted.to(device, non_blocking=True),
            masks,
        )


@dataclass(frozen=True)
class LabeledRois:
    """R boxes of a batch with the object that each of them shows.

    ``boxes``: float32 (R, 4) XYXY pixels. ``image_index``: int64 (R,). ``classes``: int64 (R,), the number of
    classes for background. ``gt_index``: int64 (R,), the object in its image that overlaps most.
    """

    boxes: Tensor
    image_index: Tensor
    classes: Tensor
    gt_index: Tensor

    def __getitem__(self, index: Tensor) -> LabeledRois:
        return LabeledRois(
            self.boxes[index], self.image_index[index], self.classes[index], self.gt_index[index]
        )


def label_rois(
    boxes: Tensor, image_index: Tensor, truth: GroundTruth, iou_threshold: float, num_classes: int
) -> LabeledRois:
    """A box shows the object that it overlaps most, if by ``iou_threshold`` or more, else background."""
    overlap, gt_index = iou(boxes[:, None], truth.boxes[image_index]).max(1)
    classes = truth.classes[image_index, gt_index].masked_fill(overlap < iou_threshold, num_classes)
    return LabeledRois(boxes, image_index, classes, gt_index)


def rois_of_objects(truth: GroundTruth) -> LabeledRois:
    """The box of every object, ordered by image, which shows that object."""
    counts = torch.tensor(truth.counts, device=truth.boxes.device)
    is_object = torch.arange(truth.boxes.shape[1], device=truth.boxes.device) < counts[:, None]
    image_index, gt_index = is_object.nonzero(as_tuple=True)
    return LabeledRois(truth.boxes[is_object], image_index, truth.classes[is_object], gt_index)


Lessons = Callable[[LabeledRois, GroundTruth], Tensor]  # which boxes teach what their object has: bool (R,)


def from_every_object(rois: LabeledRois, truth: GroundTruth) -> Tensor:
    """All of them."""
    return torch.ones_like(rois.classes, dtype=torch.bool)


def from_real_objects(rois: LabeledRois, truth: GroundTruth) -> Tensor:
    """Those whose object was not pasted (X-Paste's ablations)."""
    return ~truth.pasted[rois.image_index, rois.gt_index]


def from_pasted_objects(rois: LabeledRois, truth: GroundTruth) -> Tensor:
    """Those whose object was pasted."""
    return truth.pasted[rois.image_index, rois.gt_index]


class RoiSampler:
    """Draws, for each image, objects' boxes and background at random.

    Args:
        per_image: boxes of one image (fewer if there are fewer).
        foreground_share: at most this share of them shows objects.
        iou_threshold: overlap from which a box shows an object.
        generator: of the random numbers; torch's own where it is None.
    """

    def __init__(
        self,
        per_image: int,
        foreground_share: float,
        iou_threshold: float,
        num_classes: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.per_image = per_image
        self.foreground_share = foreground_share
        self.iou_threshold = iou_threshold
        self.num_classes = num_classes
        self.generator = generator

    @torch.no_grad()
    def __call__(self, proposals: Sequence[Tensor], truth: GroundTruth) -> LabeledRois:
        """From the proposals (R_n, 4) of each image and its objects' own boxes."""
        candidates = [
            torch.cat([boxes, objects[:count]])
            for boxes, objects, count in zip(proposals, truth.boxes, truth.counts, strict=True)
        ]
        sampled = []
        for index, boxes in enumerate(candidates):
            image_index = torch.full((len(boxes),), index, device=boxes.device)
            rois = label_rois(boxes, image_index, truth, self.iou_threshold, self.num_classes)
            sampled.append(rois[self._draw(rois.classes)])
        return LabeledRois(
            torch.cat([rois.boxes for rois in sampled]),
            torch.cat([rois.image_index for rois in sampled]),
            torch.cat([rois.classes for rois in sampled]),
            torch.cat([rois.gt_index for rois in sampled]),
        )

    def _draw(self, classes: Tensor) -> Tensor:
        foreground = (classes != self.num_classes).nonzero().squeeze(1)
        background = (classes == self.num_classes).nonzero().squeeze(1)
        num_foreground = min(len(foreground), int(self.per_image * self.foreground_share))
        num_background = self.per_image - num_foreground
        return torch.cat(
            [
                foreground[self._permutation(foreground)[:num_foreground]],
                background[self._permutation(background)[:num_background]],
            ]
        )

    def _permutation(self, of: Tensor) -> Tensor:
        return torch.randperm(len(of), device=of.device, generator=self.generator)
