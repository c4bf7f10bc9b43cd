"""A small U-Net that finds the object in a picture; it loads and answers the way BiRefNet does."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


class ForegroundConfig(PretrainedConfig):
    model_type = "digits_foreground"

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64), **kwargs) -> None:
        self.widths = list(widths)
        super().__init__(**kwargs)


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class ForegroundUNet(PreTrainedModel):
    """Images (N, 3, H, W), normalised with ImageNet's mean and deviation, H and W multiples of 8.

    Returns a list whose last entry is the foreground's logits, (N, 1, H, W).
    """

    config_class = ForegroundConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ForegroundConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.down = nn.ModuleList(
            _convolutions(*pair) for pair in zip([3, *widths[:-1]], widths, strict=True)
        )
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.up = nn.ModuleList(_convolutions(deep + shallow, shallow) for deep, shallow in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for block in self.down:
            deeper = F.max_pool2d(features[-1], 2) if features else pixel_values
            features.append(block(deeper))
        result = features.pop()
        for block in self.up:
            shallow = features.pop()
            enlarged = F.interpolate(result, size=shallow.shape[-2:], mode="bilinear", align_corners=False)
            result = block(torch.cat([enlarged, shallow], dim=1))
        return [self.head(result)]
