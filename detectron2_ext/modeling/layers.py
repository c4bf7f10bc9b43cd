"""What several parts of the network are made of."""

from __future__ import annotations

from torch import nn


def fill_fan_in(layer: nn.Conv2d | nn.Linear) -> None:
    """Uniform with variance 1 / fan-in (Caffe2's XavierFill), no bias."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)


def fill_fan_out(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Normal with variance 2 / fan-out (Caffe2's MSRAFill), no bias."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
