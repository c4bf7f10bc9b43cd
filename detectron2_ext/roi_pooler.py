"""Boxes pooled from a pyramid, and RoIAlign (He et al., Mask R-CNN, 2017, section 3) as weighted sums of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

# Up to so many cells of a map, two small matrix products are cheaper than gathering what each bin needs.
_MAX_CELLS_SEPARABLE = 24 * 24
# A 224-pixel box belongs to the level of stride 16 (FPN, equation 1).
_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4


class RoiPooler(nn.Module):
    """RoIAlign (He et al., 2017) from the pyramid level that fits the box (Lin et al., 2017, equation 1).

    Args:
        output_size: rows and columns of the pooled features.
        strides: of the levels in pixels, each twice the one before.
    """

    def __init__(self, output_size: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = list(strides)

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Pooled features (R, C, output_size, output_size) in the order of the boxes.

        ``features``: (B, C, H_l, W_l) per level. ``boxes``: float32 (R, 4) XYXY pixels. ``image_index``:
        int64 (R,).
        """
        level = self.level_of(boxes)
        order, pooled = [], []
        for index, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            on_level = (level == index).nonzero().squeeze(1)
            order.append(on_level)
            pooled.append(self._pool(feature, boxes[on_level], image_index[on_level], 1 / stride))
        return torch.cat(pooled)[torch.cat(order).argsort()]

    def _pool(self, feature: Tensor, boxes: Tensor, image_index: Tensor, scale: float) -> Tensor:
        if feature.device.type == "cpu":  # where torchvision's backward pass is slow
            small = feature[0, 0].numel() <= _MAX_CELLS_SEPARABLE
            pool = separable_roi_align if small else gathering_roi_align
            return pool(feature, boxes, image_index, self.output_size, scale)
        rois = torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)
        return roi_align(feature, rois, self.output_size, spatial_scale=scale, aligned=True)

    def level_of(self, boxes: Tensor) -> Tensor:
        """int64 (R,): index of the level that each box is pooled from."""
        size = (boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt()
        lowest = int(math.log2(self.strides[0]))
        level = (_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE + 1e-8)).floor()
        return level.long().clamp(lowest, lowest + len(self.strides) - 1) - lowest


def separable_roi_align(
    features: Tensor, boxes: Tensor, image_index: Tensor, size: int, scale: float
) -> Tensor:
    """What ``torchvision.ops.roi_align(…, aligned=True)`` returns, on small maps several times faster on a CPU:
    one matrix product per axis.

    Args:
        features: (B, C, H, W).
        boxes: float32 (R, 4) XYXY in pixels of the image.
        image_index: int64 (R,).
        size: bins per side.
        scale: feature cells per pixel.

    Returns:
        float32 (R, C, size, size), differentiable in the features.
    """
    channels, height, width = features.shape[1:]
    boxes = boxes * scale
    start = torch.zeros_like(image_index)
    rows = roi_align_weights(boxes[:, 1], boxes[:, 3], size, height, start, height)
    columns = roi_align_weights(boxes[:, 0], boxes[:, 2], size, width, start, width)
    pooled, order = [], []
    with torch.autocast(features.device.type, enabled=False):
        for index, feature in enumerate(features.float()):
            mine = (image_index == index).nonzero().squeeze(1)
            by_row = rows[mine].flatten(0, 1) @ feature.transpose(0, 1).reshape(height, channels * width)
            by_row = by_row.view(len(mine), size * channels, width)
            pooled.append((by_row @ columns[mine].mT).view(len(mine), size, channels, size))
            order.append(mine)
    return torch.cat(pooled)[torch.cat(order).argsort()].transpose(1, 2)


def gathering_roi_align(
    features: Tensor, boxes: Tensor, image_index: Tensor, size: int, scale: float
) -> Tensor:
    """As :func:`separable_roi_align`, faster on large maps: a sum over the pixels that count.

    All channels of a pixel are read, weighted and added together, where torchvision takes one after the other;
    features in the memory format ``channels_last`` are not copied for that.
    """
    channels, height, width = features.shape[1:]
    boxes = boxes * scale
    rows, row_weights = bin_weights(boxes[:, 1], boxes[:, 3], size, height)
    columns, column_weights = bin_weights(boxes[:, 0], boxes[:, 2], size, width)
    rows = rows + image_index[:, None, None] * height
    cells = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    used = weights != 0
    ends = used.sum((3, 4)).flatten().cumsum(0)
    table = features.float().permute(0, 2, 3, 1).reshape(-1, channels)
    sums = F.embedding_bag(
        cells[used],
        table,
        F.pad(ends, (1, 0)),
        mode="sum",
        per_sample_weights=weights[used],
        include_last_offset=True,
    )
    return sums.view(len(boxes), size, size, channels).permute(0, 3, 1, 2)


def roi_align_weights(
    start: Tensor, end: Tensor, size: int, extent: int, window_start: Tensor, window_extent: int
) -> Tensor:
    """Weight in every bin of every pixel of a window, along one axis; see :func:`bin_weights`.

    Args:
        window_start: int64 (N,), first pixel of each box's window.
        window_extent: pixels of each window.

    Returns:
        float32 (N, size, window_extent).
    """
    pixels, weights = bin_weights(start, end, size, extent)
    in_window = pixels - window_start[:, None, None]
    held = (in_window >= 0) & (in_window < window_extent)
    window = torch.zeros(len(start), size, window_extent, device=start.device)
    return window.scatter_add_(2, in_window.clamp(0, window_extent - 1), weights * held)


def bin_weights(start: Tensor, end: Tensor, size: int, extent: int) -> tuple[Tensor, Tensor]:
    """The pixels that have a part in each bin, along one axis.

    Args:
        start, end: float32 (N,), edges of the boxes in pixels.
        size: bins of each box.
        extent: pixels of the image, at least 1. A sample more than one pixel outside counts as 0; one nearer
            takes the border's.

    Returns:
        int64 (N, size, K), pixels below ``extent``, and float32 (N, size, K), their weights; K is what the
        longest of the boxes needs, and the weight is 0 where a bin has fewer.
    """
    length = (end - start)[:, None, None]
    samples_per_bin = (length / size).ceil().clamp(min=0)  # a box without extent has none
    most = int(samples_per_bin.max()) if len(start) else 0
    samples = torch.arange(max(most, 1), device=start.device)
    bins = torch.arange(size, device=start.device)[:, None]
    offset = bins + (samples + 0.5) / samples_per_bin.clamp(min=1)
    position = start[:, None, None] - 0.5 + offset * (length / size)  # (N, size, samples)
    counts = (samples < samples_per_bin) & (position >= -1) & (position <= extent)
    position = position.clamp(0, extent - 1)
    lower = position.floor()
    fraction = position - lower
    share = counts / samples_per_bin.clamp(min=1)
    first = lower[:, :, :1]
    place = torch.where(counts, lower - first, 0).long()
    width = int(place.max()) + 2 if len(start) else 2
    weights = torch.zeros(len(start), size, width, device=start.device)
    weights.scatter_add_(2, place, share * (1 - fraction))
    weights.scatter_add_(2, place + 1, share * fraction)
    pixels = first.long() + torch.arange(width, device=start.device)
    return pixels.clamp(max=extent - 1), weights
