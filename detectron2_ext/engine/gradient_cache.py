"""What gradient selection remembers from one iteration to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exchange.decisions import Decision

_QUEUE = 100  # scores that a threshold from the queue looks at


def flat_gradient(total: Tensor, parameters: Sequence[nn.Parameter], retain_graph: bool = False) -> Tensor:
    """Of a scalar, in all parameters in their order: float (P,)."""
    gradients = torch.autograd.grad(
        total, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients])


class GradientCache:
    """A running gradient of test images: after each of them ``G ← m G + (1 - m) g`` (BSGAL; Zhu et al., 2024).

    Args:
        parameters: that the gradient is taken in.
        momentum: ``m``; None for the mean of all ``g`` so far.

    Attributes:
        gradient: ``G``, zeros at first, float (P,): all parameters in their order, flat.
        updates: how many ``g`` are in it.
        scores: the last 100, of all processes in the order of iteration and rank, oldest first.
        decisions: those that no table has yet.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], momentum: float | None) -> None:
        self._momentum = momentum
        self.gradient = torch.cat([torch.zeros_like(parameter).flatten() for parameter in parameters])
        self.updates = 0
        self.scores: deque[float] = deque(maxlen=_QUEUE)
        self.decisions: list[Decision] = []

    def update(self, gradient: Tensor) -> None:
        """Takes in ``g``, float (P,)."""
        kept = self.updates / (self.updates + 1) if self._momentum is None else self._momentum
        self.gradient.mul_(kept).add_(gradient, alpha=1 - kept)
        self.updates += 1

    def cosine(self, gradient: Tensor) -> float | None:
        """Of the angle between ``G`` and a gradient, float (P,); None where one of them is zero or not finite."""
        product = self.gradient @ gradient / (self.gradient.norm() * gradient.norm())
        return float(product) if bool(product.isfinite()) else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: tensors and a number."""
        scores = torch.tensor(list(self.scores), dtype=torch.float64)
        return {"gradient": self.gradient, "updates": self.updates, "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken, exactly."""
        self.gradient.copy_(state["gradient"])
        self.updates = state["updates"]
        self.scores = deque(state["scores"].tolist(), maxlen=_QUEUE)
        self.decisions = []
