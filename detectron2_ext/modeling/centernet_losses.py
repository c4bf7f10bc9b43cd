"""The losses of the proposal generator."""

import torch
from torch import Tensor


def heat_map_focal_loss(
    logits: Tensor,
    heat: Tensor,
    center_index: Tensor,
    is_center: Tensor,
    *,
    alpha: float = 0.25,
    beta: float = 4.0,
    gamma: float = 2.0,
    clamp: float = 1e-4,
    ignore_above: float = 0.85,
) -> tuple[Tensor, Tensor]:
    """Penalty-reduced focal loss (Zhou et al., Objects as points, 2019, equation 1), with a weight for each
    half.

    Args:
        logits, heat: (B, M), prediction and target for every cell; ``heat`` in [0, 1].
        center_index, is_center: (B, K), the cells at which objects lie; a cell with two objects counts twice.
        alpha: weight of the positive half; the negative one has ``1 - alpha``.
        beta: how fast a cell near a centre stops being a negative.
        gamma: how fast a cell that is already right stops counting.
        clamp: probabilities stay this far from 0 and 1.
        ignore_above: a negative with a higher probability does not count: it may be an object without
            annotation.

    Returns:
        The positive and the negative half, summed over all cells.
    """
    probability = logits.float().sigmoid().clamp(clamp, 1 - clamp)
    at_center = probability.gather(1, center_index)
    positive = at_center.log() * (1 - at_center) ** gamma * is_center
    negative = (
        (1 - probability).log() * probability**gamma * (1 - heat) ** beta * (probability < ignore_above)
    )
    return -alpha * positive.sum(), -(1 - alpha) * negative.sum()


def giou_distance_loss(distances: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al., 2019) of two boxes around the same location, summed.

    Args:
        distances, targets: (..., 4), from the location to left, top, right, bottom, in units of the stride.
        counts: bool (...), which locations have a target.

    The two ones keep the IoU defined for boxes without area, as in CenterNet2.
    """
    predicted = distances.float()
    smaller, larger = torch.minimum(predicted, targets), torch.maximum(predicted, targets)
    intersection, hull = _area(smaller), _area(larger)
    union = _area(predicted) + _area(targets) - intersection
    giou = (intersection + 1) / (union + 1) - (hull - union) / hull
    return torch.where(counts, 1 - giou, 0.0).sum()


def _area(distances: Tensor) -> Tensor:
    return (distances[..., :2] + distances[..., 2:]).prod(-1)
