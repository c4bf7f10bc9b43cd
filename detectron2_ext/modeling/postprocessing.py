"""From the heads' outputs to detections on the original image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detectron2_ext.modeling.boxes import clip_to_image, has_area
from detectron2_ext.structures import Instances

_PIXELS_AT_ONCE = 2**24  # of the pasted masks, as floats: 64 MiB


@dataclass(frozen=True)
class DetectionSelection:
    """Which box-class pairs of an image become detections."""

    score_threshold: float
    nms_threshold: float
    per_image: int

    def __call__(self, boxes: Tensor, scores: Tensor, image_size: tuple[int, int]) -> Instances:
        """``boxes``: float32 (R, 4). ``scores``: float32 (R, C). Every class of every box is a candidate.

        Returns:
            ``pred_boxes``, ``scores``, ``pred_classes`` of the detections, best first.
        """
        finite = boxes.isfinite().all(1) & scores.isfinite().all(1)
        boxes, scores = boxes[finite], scores[finite]
        boxes = clip_to_image(boxes, torch.tensor(image_size, device=boxes.device))
        box_index, classes = (scores > self.score_threshold).nonzero(as_tuple=True)
        boxes, scores = boxes[box_index], scores[box_index, classes]
        keep = batched_nms(boxes, scores, classes, self.nms_threshold)[: self.per_image]
        return Instances(image_size, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=classes[keep])


def resize_detections(detections: Instances, height: int, width: int) -> Instances:
    """The same detections on the image resized to ``height`` x ``width``; those without area left are
    dropped.

    ``pred_masks`` stay probabilities (N, S, S) over each box.
    """
    old_height, old_width = detections.image_size
    boxes = detections.pred_boxes
    scale = boxes.new_tensor([width / old_width, height / old_height] * 2)
    boxes = clip_to_image(boxes * scale, torch.tensor([height, width], device=boxes.device))
    fields = dict(detections.fields()) | {"pred_boxes": boxes}
    return Instances((height, width), **fields)[has_area(boxes)]


def with_pasted_masks(detections: Instances) -> Instances:
    """The same detections with ``pred_masks`` as bool (N, height, width) of their image."""
    fields = dict(detections.fields())
    if "pred_masks" in fields:
        fields["pred_masks"] = paste_masks(fields["pred_masks"], fields["pred_boxes"], *detections.image_size)
    return Instances(detections.image_size, **fields)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks over boxes to masks of the whole image: bool (N, height, width), probability at least one half.

    ``masks``: float (N, S, S). ``boxes``: float32 (N, 4) XYXY pixels. The value of a pixel is the bilinear
    interpolation at its centre, with zeros around the mask: one matrix product per axis.
    """
    full = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    size = masks.shape[-1]
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, len(masks), at_once):
        part = slice(start, start + at_once)
        rows = _interpolation_weights(boxes[part, 1], boxes[part, 3], size, height)
        columns = _interpolation_weights(boxes[part, 0], boxes[part, 2], size, width)
        full[part] = rows @ masks[part].float() @ columns.mT >= 0.5
    return full


def _interpolation_weights(start: Tensor, end: Tensor, size: int, extent: int) -> Tensor:
    """Weight of each of ``size`` mask cells in each of ``extent`` pixels: float32 (N, extent, size)."""
    pixel = torch.arange(extent, device=start.device) + 0.5
    position = (pixel - start[:, None]) / (end - start)[:, None] * size - 0.5  # in mask cells
    cell = torch.arange(size, device=start.device)
    return (1 - (position[:, :, None] - cell).abs()).clamp(min=0)
