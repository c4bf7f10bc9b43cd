"""How uncertain a classifier is of an image: functions of its logits and of the class that was asked for.

Each takes logits (N, C+1), background last, and class indices (N,) from 0, and returns (N,): higher means
less certain, and guidance ascends it. A new one needs a line in ``CRITERIA``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Criterion = Callable[[Tensor, Tensor], Tensor]


def entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Entropy in nats of the softmax over all C+1 classes (MRCA's criterion)."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy in nats against the class that the prompt asked for."""
    return F.cross_entropy(logits, classes, reduction="none")


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Minus the lead of the most probable class over the second (margin sampling, Scheffer et al. 2001)."""
    first, second = logits.softmax(dim=1).topk(2, dim=1).values.unbind(dim=1)
    return second - first


def sigmoid_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Entropy in nats of the yes-or-no question whether it is the asked class: sigmoid of that logit."""
    asked = logits.gather(1, classes[:, None]).squeeze(1)
    return F.binary_cross_entropy_with_logits(asked, torch.sigmoid(asked), reduction="none")


CRITERIA: dict[str, Criterion] = {
    "entropy": entropy,
    "loss": loss,
    "margin": margin,
    "sigmoid_entropy": sigmoid_entropy,
}
