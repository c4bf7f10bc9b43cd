"""Classes that only the pool has (DATASETS.EXTRA_CATEGORIES; DiverGen, Fan et al., 2024): learnt, never reported.

What a classifier has of them stands behind that of the data set's classes and before that of the background.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

# End of a parameter's name: the dimension that counts classes, and whether the background is the last of them.
_BY_CLASS = {
    "cls_score.weight": (0, True),
    "cls_score.bias": (0, True),
    "cls_score.zs_weight": (1, True),
    "freq_weight": (0, False),
}


def without_extra_classes(weights: Mapping[str, Tensor], num_extra: int) -> dict[str, Tensor]:
    """Weights of a network or of a box predictor, with what there is of ``num_extra`` classes cut off its classifiers.

    Other tensors are those given. A network with the result has the same logits of the classes left.
    """
    cut = dict(weights)
    for name, tensor in weights.items():
        if num_extra and (place := _by_class(name)):
            own, _, background = _split(tensor, *place, num_extra)
            cut[name] = torch.cat([own, background], place[0])
    return cut


def with_extra_classes(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], num_extra: int
) -> dict[str, Tensor]:
    """Weights of a network, where its classifiers lack ``num_extra`` classes with what ``expected`` has of those."""
    lacking = without_extra_classes(expected, num_extra)
    grown = dict(weights)
    for name, tensor in weights.items():
        place = _by_class(name) if num_extra and name in expected else None
        if place and tensor.shape == lacking[name].shape:
            own, _, background = _split(tensor, *place, 0)
            extra = _split(expected[name], *place, num_extra)[1].to(tensor)
            grown[name] = torch.cat([own, extra, background], place[0])
    if any(grown[name] is not weights[name] for name in weights):
        _log.info("classifiers of the data set's classes alone: %d more classes begin anew", num_extra)
    return grown


def _by_class(name: str) -> tuple[int, bool] | None:
    return next((place for end, place in _BY_CLASS.items() if name.endswith(end)), None)


def _split(tensor: Tensor, dim: int, has_background: bool, num_extra: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a tensor has of the data set's classes, of the extra ones and of the background."""
    background = int(has_background)
    own = tensor.shape[dim] - num_extra - background
    return torch.split(tensor, [own, num_extra, background], dim)
