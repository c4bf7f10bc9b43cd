"""RoIAlign (He et al., Mask R-CNN, 2017, section 3) as one matrix product per axis.

RoIAlign averages, in each bin, bilinear interpolations on a regular grid: ``ceil(box / bins)`` samples per
bin and axis. Both the grid and the interpolation are products of one factor per axis, so the average is one
too.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align_weights(
    start: Tensor,
    end: Tensor,
    size: int,
    extent: int,
    window_start: Tensor | None = None,
    window_extent: int | None = None,
) -> Tensor:
    """Weight of every pixel in every bin, along one axis.

    Args:
        start, end: float32 (N,), edges of the boxes in pixels.
        size: bins of each box.
        extent: pixels of the image. A sample more than one pixel outside counts as 0; one nearer takes the
            border's.
        window_start: int64 (N,), with ``window_extent``: return the weights of a part of the image only.

    Returns:
        float32 (N, size, window_extent or extent).
    """
    if window_start is None:
        window_start, window_extent = torch.zeros_like(start, dtype=torch.int64), extent
    weights = torch.zeros(len(start), size, window_extent, device=start.device)
    if not weights.numel():
        return weights
    length = (end - start)[:, None, None]
    samples_per_bin = (length / size).ceil().clamp(min=0)  # a box without extent has none
    samples = torch.arange(int(samples_per_bin.max()), device=start.device)
    bins = torch.arange(size, device=start.device)[:, None]
    offset = bins + (samples + 0.5) / samples_per_bin.clamp(min=1)
    position = start[:, None, None] - 0.5 + offset * (length / size)  # (N, size, samples)
    counts = (samples < samples_per_bin) & (position >= -1) & (position <= extent)
    position = position.clamp(0, extent - 1)
    lower = position.floor()
    fraction = position - lower
    share = counts / samples_per_bin.clamp(min=1)
    for pixel, weight in ((lower, share * (1 - fraction)), (lower + 1, share * fraction)):
        in_window = pixel.long() - window_start[:, None, None]
        held = (in_window >= 0) & (in_window < window_extent)
        weights.scatter_add_(2, in_window.clamp(0, window_extent - 1), weight * held)
    return weights


def separable_roi_align(
    features: Tensor, boxes: Tensor, image_index: Tensor, size: int, scale: float
) -> Tensor:
    """What ``torchvision.ops.roi_align(…, aligned=True)`` returns, for small maps several times faster on a
    CPU.

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
    rows = roi_align_weights(boxes[:, 1], boxes[:, 3], size, height)
    columns = roi_align_weights(boxes[:, 0], boxes[:, 2], size, width)
    pooled, order = [], []
    with torch.autocast(features.device.type, enabled=False):
        for index, feature in enumerate(features.float()):
            mine = (image_index == index).nonzero().squeeze(1)
            by_row = rows[mine].flatten(0, 1) @ feature.transpose(0, 1).reshape(height, channels * width)
            by_row = by_row.view(len(mine), size * channels, width)
            pooled.append((by_row @ columns[mine].mT).view(len(mine), size, channels, size))
            order.append(mine)
    return torch.cat(pooled)[torch.cat(order).argsort()].transpose(1, 2)
