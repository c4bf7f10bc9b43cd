"""The feature pyramid."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detectron2_ext.modeling.layers import fill_fan_in


class CoarserLevels(nn.Module):
    """P6 from P5 and P7 from P6, each by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for conv in self.children():
            fill_fan_in(conv)

    def forward(self, p5: Tensor) -> tuple[Tensor, Tensor]:
        p6 = self.p6(p5)
        return p6, self.p7(F.relu(p6))


class FeaturePyramid(nn.Module):
    """FPN (Lin et al., 2017) with the levels ``p3`` to ``p7`` (strides 8 to 128).

    Args:
        bottom_up: gives features of strides 8, 16 and 32 by name and their ``channels``.
        in_features: their names, finest first.
        channels: of every level.
    """

    strides = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}

    def __init__(self, bottom_up: nn.Module, in_features: Sequence[str], channels: int) -> None:
        super().__init__()
        self.in_features = list(in_features)
        for level, name in enumerate(self.in_features, start=3):
            lateral = nn.Conv2d(bottom_up.channels[name], channels, 1)
            output = nn.Conv2d(channels, channels, 3, padding=1)
            fill_fan_in(lateral)
            fill_fan_in(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.top_block = CoarserLevels(channels)
        self.bottom_up = bottom_up

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), H and W multiples of 32, to (B, channels, H / stride, W / stride) by name."""
        bottom_up = self.bottom_up(images)
        merged = None
        levels = {}
        for level, name in reversed(list(enumerate(self.in_features, start=3))):
            lateral = self.get_submodule(f"fpn_lateral{level}")(bottom_up[name])
            merged = lateral if merged is None else lateral + F.interpolate(merged, scale_factor=2.0)
            levels[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(merged)
        levels["p6"], levels["p7"] = self.top_block(levels["p5"])
        return levels
