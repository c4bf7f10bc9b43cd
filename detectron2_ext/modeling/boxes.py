"""Arithmetic on XYXY boxes in absolute pixels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST_LOG_SCALE = math.log(1000.0 / 16)  # keeps exp() finite: no stage enlarges a box more than 62.5 times


def clip_to_image(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Boxes (..., 4) with every corner moved into its image; ``image_size`` (..., 2) is (height, width)."""
    height, width = image_size.to(boxes.dtype).unbind(-1)
    limits = torch.stack([width, height, width, height], dim=-1)
    return torch.minimum(boxes.clamp(min=0), limits)


def has_area(boxes: Tensor) -> Tensor:
    """bool (...): whether each box (..., 4) is more than a line."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) and (..., 4), broadcast; 0 where they do not overlap."""
    overlap = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    intersection = overlap.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1)
    return torch.where(intersection > 0, intersection / (area - intersection), 0.0)


class BoxCoder:
    """The regression targets of R-CNN (Girshick et al., 2014, appendix C).

    A box relative to a proposal: shift of the centre in units of the proposal's width and height, logarithm
    of the ratio of widths and heights, each times its weight.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(float(weight) for weight in weights)

    def encode(self, proposals: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (R, 4) that turn ``proposals`` (R, 4), which have area, into ``boxes`` (R, 4)."""
        size = proposals[:, 2:] - proposals[:, :2]
        target_size = boxes[:, 2:] - boxes[:, :2]
        shift = (boxes[:, :2] + 0.5 * target_size - proposals[:, :2] - 0.5 * size) / size
        return torch.cat([shift, (target_size / size).log()], dim=1) * shift.new_tensor(self.weights)

    def decode(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        """float32 boxes (R, 4) that ``deltas`` (R, 4) make of ``proposals`` (R, 4)."""
        shift, log_scale = (deltas.float() / deltas.new_tensor(self.weights, dtype=torch.float32)).split(
            2, dim=1
        )
        size = proposals[:, 2:] - proposals[:, :2]
        center = proposals[:, :2] + 0.5 * size + shift * size
        half = 0.5 * size * log_scale.clamp(max=_LARGEST_LOG_SCALE).exp()
        return torch.cat([center - half, center + half], dim=1)
