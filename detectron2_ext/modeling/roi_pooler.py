"""Features of a fixed size for boxes of any size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from detectron2_ext.roi_align import gathering_roi_align, separable_roi_align

# Up to so many cells of a map, two small matrix products are cheaper than gathering what each bin needs.
_MAX_CELLS_SEPARABLE = 24 * 24
_CANONICAL_SIZE, _CANONICAL_LEVEL = (
    224,
    4,
)  # a 224-pixel box belongs to the level of stride 16 (FPN, equation 1)


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
