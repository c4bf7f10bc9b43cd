"""The exponential moving average of the weights, which is what evaluation and feedback use."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn


class ModelEma:
    """A copy of a network that follows it slowly: after each iteration ``ema = d · ema + (1 - d) · weights``.

    It starts as an equal copy. Floating point buffers follow like weights; others are taken over.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False).eval()
        self._decay = decay
        ours, theirs = _tensors(self.model), _tensors(model)
        pairs = list(zip(ours, theirs, strict=True))
        self._averaged = [mine for mine, _ in pairs if mine.is_floating_point()]
        self._sources = [source for mine, source in pairs if mine.is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the present weights of the network."""
        torch._foreach_lerp_(self._averaged, self._sources, 1.0 - self._decay)
        for mine, source in self._copied:
            mine.copy_(source)


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(chain(model.parameters(), model.buffers()))
