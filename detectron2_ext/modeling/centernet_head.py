"""The convolutions of the proposal generator."""

import math
from collections.abc import Sequence

from torch import Tensor, nn, ones
from torch.nn import functional as F


class LevelScale(nn.Module):
    """One learned factor for the distances of one pyramid level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class CenterNetHead(nn.Module):
    """One tower for all levels that predicts the heat map of object centres and the box around each location.

    Args:
        channels: of the pyramid features and of the tower.
        num_levels: pyramid levels, each with a scale of its own.
        num_convs: 3x3 convolutions of the tower, each with GroupNorm (32 groups; narrower: 2 channels each)
            and ReLU.
        prior_prob: probability that the untrained heat map gives every location (Lin et al., 2017, section
            4.1).
    """

    def __init__(self, channels: int, num_levels: int, num_convs: int = 4, prior_prob: float = 0.01) -> None:
        super().__init__()
        groups = 32 if channels >= 64 and channels % 32 == 0 else channels // 2
        tower: list[nn.Module] = []
        for _ in range(num_convs):
            tower += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(groups, channels), nn.ReLU()]
        self.bbox_tower = nn.Sequential(*tower)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.agn_hm = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.bbox_pred.bias, 8.0)  # a box of 16 cells: overlaps its object from the start
        nn.init.constant_(self.agn_hm.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (B, C, H, W): heat map logits (B, 1, H, W) and distances to left, top, right, bottom
        (B, 4, H, W) >= 0 in units of the level's stride."""
        heat_logits, distances = [], []
        for feature, scale in zip(features, self.scales, strict=True):
            hidden = self.bbox_tower(feature)
            heat_logits.append(self.agn_hm(hidden))
            distances.append(F.relu(scale(self.bbox_pred(hidden))))
        return heat_logits, distances
