"""From pooled features to a class and a box."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2_ext.modeling.initialization import fill_fan_in


class BoxHead(nn.Module):
    """Fully connected layers ``fc1`` … ``fcN``, each with ReLU.

    Args:
        in_features: channels x rows x columns of the pooled features.
        width: of each layer; the feature before the classifier has as many entries.
        num_layers: how many there are.
    """

    def __init__(self, in_features: int, width: int = 1024, num_layers: int = 2) -> None:
        super().__init__()
        self.width = width
        for index in range(num_layers):
            layer = nn.Linear(in_features if index == 0 else width, width)
            fill_fan_in(layer)
            self.add_module(f"fc{index + 1}", layer)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, S, S) to (R, width)."""
        hidden = pooled.flatten(1)
        for layer in self.children():
            hidden = F.relu(layer(hidden))
        return hidden


class BoxPredictor(nn.Module):
    """Class logits and class-agnostic box deltas.

    Args:
        in_features: of the box head.
        num_classes: without background, which is the last logit.
        prior_prob: probability that the untrained classifier gives every class.
        class_weights: float (num_classes,), relative chance of each class to be a negative in the federated
            loss (buffer ``freq_weight``); None where the loss covers all classes.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        prior_prob: float = 0.01,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4)
        self.register_buffer("freq_weight", None if class_weights is None else class_weights.clone())
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(R, in_features) to logits (R, num_classes + 1) and deltas (R, 4)."""
        return self.cls_score(hidden), self.bbox_pred(hidden)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
