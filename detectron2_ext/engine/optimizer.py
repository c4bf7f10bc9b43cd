"""Optimiser, gradient clipping and learning rate schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import CompositeParamScheduler, CosineParamScheduler, LinearParamScheduler
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import LambdaLR

from exchange.config import choose

Clip = Callable[[list[nn.Parameter]], object]


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimiser that ``cfg.SOLVER`` describes, over the parameters that learn."""
    solver = cfg.SOLVER
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = solver.BACKBONE_MULTIPLIER if name.startswith("backbone.") else 1.0
            if any(part in name for part in solver.CUSTOM_MULTIPLIER_NAME):
                factor *= solver.CUSTOM_MULTIPLIER
            groups[factor].append(parameter)
    settings = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY, "fused": True}
    parts = [{"params": group, "lr": solver.BASE_LR * factor} for factor, group in groups.items()]
    sgd = partial(torch.optim.SGD, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    return choose(cfg, "SOLVER.OPTIMIZER", {"ADAMW": torch.optim.AdamW, "SGD": sgd})(parts, **settings)


def build_clip(cfg: CfgNode) -> Clip:
    """The clipping of gradients, in place, that ``cfg.SOLVER.CLIP_GRADIENTS`` describes."""
    settings = cfg.SOLVER.CLIP_GRADIENTS
    limit, norm_type = settings.CLIP_VALUE, settings.NORM_TYPE
    kinds: dict[str, Clip] = {
        "value": lambda parameters: clip_grad_value_(parameters, limit),
        "norm": lambda parameters: [clip_grad_norm_(each, limit, norm_type) for each in parameters],
        "full_model": lambda parameters: clip_grad_norm_(parameters, limit, norm_type),
    }
    if not settings.ENABLED:
        return lambda parameters: None
    return choose(cfg, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kinds)


def build_schedule(optimizer: torch.optim.Optimizer, cfg: CfgNode) -> LambdaLR:
    """Warm-up, then half a cosine, over all iterations of all rounds.

    At iteration ``i`` of ``n``, with ``w`` iterations of warm-up from the factor ``f`` and ``e`` the last
    learning rate as a share of the first, the learning rate is multiplied by
    ``c(i) = e + (1 - e) (1 + cos(π i / n)) / 2`` (Loshchilov & Hutter, SGDR, 2017, equation 5, without
    restart), and before iteration ``w`` by the straight line from ``f`` at 0 to ``c(w)`` at ``w``.
    """
    choose(cfg, "SOLVER.LR_SCHEDULER_NAME", {"WarmupCosineLR": None})
    solver = cfg.SOLVER
    cosine = CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR)
    share = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    multiplier = (
        CompositeParamScheduler(
            [LinearParamScheduler(solver.WARMUP_FACTOR, cosine(share)), cosine],
            lengths=[share, 1.0 - share],
            interval_scaling=["rescaled", "fixed"],
        )
        if share
        else cosine
    )
    return LambdaLR(optimizer, lambda i: multiplier(i / solver.MAX_ITER))
