"""ResNet backbones."""

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn

# The reference's checkpoints of these carry an unused ``fc``.
_WITH_CLASSIFIER = {"resnet50", "resnet50_in21k"}


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics and affine parameters stay as they were loaded."""

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.eval()
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


class TimmResNet(nn.Module):
    """A timm ResNet whose stages are the features ``layer3`` (stride 8), ``layer4`` (16) and ``layer5`` (32).

    Args:
        name: of the timm model, without pre-trained weights; ``resnet50_in21k`` is Detic's name for
            ``resnet50``.
        frozen_norm: freeze the batch norms.

    ``channels`` says how many each feature has.
    """

    def __init__(self, name: str, frozen_norm: bool) -> None:
        super().__init__()
        self.base = timm.create_model(
            name.removesuffix("_in21k"),
            pretrained=False,
            num_classes=1000 if name in _WITH_CLASSIFIER else 0,
            norm_layer=FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d,
        )
        for parameter in self.base.fc.parameters():
            parameter.requires_grad_(False)
        info: Sequence[dict] = self.base.feature_info
        self.channels = {f"layer{level}": info[level - 1]["num_chs"] for level in (3, 4, 5)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to (B, C_l, H / stride, W / stride) by name."""
        base = self.base
        hidden = base.layer1(base.maxpool(base.act1(base.bn1(base.conv1(images)))))
        features = {}
        for name, stage in (("layer3", base.layer2), ("layer4", base.layer3), ("layer5", base.layer4)):
            features[name] = hidden = stage(hidden)
        return features
