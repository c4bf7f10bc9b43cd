"""From the keys of BSGAL's release (``INPUT.ACTIVE_SELECT``, ``MODEL.ACTIVE_…``) to a gradient selection or rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.amp import GradScaler

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import is_bgr
from detectron2_ext.data.view import SceneReader
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.gradient_cache import GradientCache
from detectron2_ext.engine.gradient_rank import GradientRank
from detectron2_ext.engine.gradient_selection import GradientSelection, Threshold
from detectron2_ext.engine.train_loader import build_augmentation
from detectron2_ext.modeling.builder import build_detector
from detectron2_ext.modeling.described import DescribedWeights
from detectron2_ext.modeling.weights import load_weights
from detectron2_ext.paste.build import build_single_paster
from detectron2_ext.paste.pool import InstancePool
from exchange.config import at_least, choose
from exchange.errors import UserError

BOX_HEADS = ("roi_heads.box_head", "roi_heads.box_predictor")
_NUMBER = r"-?\d+(?:\.\d+)?"
_FIXED = re.compile(rf"only_paste_({_NUMBER})")
_QUEUED = re.compile(rf"only_paste_dynamic_({_NUMBER})")
_MOVING = re.compile(rf"only_paste_dynamic_linear_({_NUMBER})_({_NUMBER})")
_MOMENTUM = re.compile(rf"MOMENTUM({_NUMBER})")
# False in the release: losses after a trial step are compared; the network proposes boxes in test images.
_ONLY = ("ACTIVE_GRAD_COMPARE", "ACTIVE_ONLY_GT_TEST")


def build_cache(model: nn.Module, cfg: CfgNode) -> GradientCache | None:
    """What a selection remembers of a training of ``model``, at its start; None where nothing is selected.

    Raises UserError for a setting with a value that there is not.
    """
    if not cfg.INPUT.ACTIVE_SELECT:
        return None
    node = cfg.MODEL
    for name in _ONLY:
        if not node[name]:
            raise UserError(
                f"MODEL.{name} is False, which asks for a selection that this implementation does not have: set it to "
                "True, or INPUT.ACTIVE_SELECT to False"
            )
    if cfg.INPUT.USE_COPY_METHOD == "none":
        raise UserError(
            "INPUT.ACTIVE_SELECT is True, but INPUT.USE_COPY_METHOD none pastes nothing that could be selected: set "
            "another of the two"
        )
    _build_threshold(cfg)  # so that what is wrong with it is said before the training
    for key in ("MODEL.ACTIVE_TEST_EVERY", "MODEL.ACTIVE_TEST_BATCHSIZE"):
        at_least(1, cfg, key)
    momentum = _read_momentum(node.ACTIVE_GRAD_UPDATE) if node.ACTIVE_GRAD_SAVE else 0.0
    return GradientCache(list(_chosen(model, cfg.MODEL.ACTIVE_GRAD_LAYERS).values()), momentum)


def build_selection(
    cfg: CfgNode, model: nn.Module, cache: GradientCache, scaler: GradScaler, ranks: Ranks
) -> GradientSelection:
    """The selection of a training of ``model``; ``scaler``: of its losses. ``cache``: see :func:`build_cache`."""
    chosen = _chosen(model, cfg.MODEL.ACTIVE_GRAD_LAYERS)
    return GradientSelection(
        model,
        list(chosen.values()),
        cache,
        scaler,
        ranks,
        _build_threshold(cfg),
        through_backbone=any(name.startswith("backbone.") for name in chosen),
        test_every=cfg.MODEL.ACTIVE_TEST_EVERY,
        together=cfg.MODEL.ACTIVE_TOGETHER,
        accumulation=cfg.SOLVER.ACCUMULATION_STEPS,
        max_iterations=cfg.SOLVER.MAX_ITER,
    )


def build_gradient_rank(
    cfg: CfgNode,
    weights: DescribedWeights,
    dataset: DetectionDataset,
    pool: InstancePool,
    device: torch.device,
    num_tests: int,
) -> GradientRank:
    """BSGAL's score of each instance of ``pool`` by the averaged weights of a checkpoint.

    Gradients are those in MODEL.ACTIVE_GRAD_LAYERS, or where that is empty in the box heads, which is much cheaper than
    in all parameters. Raises UserError for weights that are not of their settings.
    """
    draws = torch.Generator(device)
    model = build_detector(cfg, generator=draws)
    load_weights(model, weights.path, use_ema=True, content=weights.content)
    model = model.to(device).eval().requires_grad_(True)
    chosen = _chosen(model, cfg.MODEL.ACTIVE_GRAD_LAYERS or list(BOX_HEADS))
    model.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    images = dataset.trainable_images()
    return GradientRank(
        model,
        list(chosen.values()),
        draws,
        SceneReader(dataset, build_augmentation(cfg)),
        images,
        pool,
        build_single_paster(cfg, dataset, pool),
        cfg.SEED,
        num_tests,
        through_backbone=any(name.startswith("backbone.") for name in chosen),
        bgr=is_bgr(cfg),
    )


def _chosen(model: nn.Module, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that learn and whose name contains one of MODEL.ACTIVE_GRAD_LAYERS, all if that is empty."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if missing := [part for part in parts if not any(part in name for name in learning)]:
        raise UserError(
            f"MODEL.ACTIVE_GRAD_LAYERS has {missing[0]!r}, which is in the name of no parameter that learns: the last "
            "layers are roi_heads.box_predictor"
        )
    return {name: p for name, p in learning.items() if not parts or any(part in name for part in parts)}


def _read_momentum(update: str) -> float | None:
    found = _MOMENTUM.fullmatch(update)
    if update != "AVERAGE" and not (found and 0 <= float(found[1]) < 1):
        raise UserError(
            f"MODEL.ACTIVE_GRAD_UPDATE is {update!r}: choose AVERAGE, or MOMENTUM and a number from 0 to below 1 "
            "(MOMENTUM0.1)"
        )
    return float(found[1]) if found else None


def _build_threshold(cfg: CfgNode) -> Threshold | None:
    kinds: dict[str, Callable[[], Threshold | None]] = {
        "paste_only": lambda: _threshold_of_pasted(cfg),
        "paste_or_ori": lambda: None,
    }
    return choose(cfg, "MODEL.ACTIVE_MODE", kinds)()


def _threshold_of_pasted(cfg: CfgNode) -> Threshold:
    mode = cfg.MODEL.ACTIVE_ONCE_MODE
    if not cfg.MODEL.ACTIVE_FORWARD_ONCE:
        raise UserError(
            "MODEL.ACTIVE_FORWARD_ONCE is False, which asks for a second forward pass that this implementation does "
            "not have: set it to True, or MODEL.ACTIVE_MODE to paste_or_ori"
        )
    if found := _FIXED.fullmatch(mode):
        value = float(found[1])
        return lambda cache, progress: value
    if found := _QUEUED.fullmatch(mode) or _MOVING.fullmatch(mode):
        first, *last = map(float, found.groups())
        if all(0 <= share <= 1 for share in (first, *last)):
            return partial(_reached_by_share, first=first, last=last[0] if last else first)
    raise UserError(
        f"MODEL.ACTIVE_ONCE_MODE is {mode!r}: choose only_paste_T with a threshold T (only_paste_-0.05), "
        "only_paste_dynamic_S or only_paste_dynamic_linear_S_S with shares S from 0 to 1 to accept"
    )


def _reached_by_share(cache: GradientCache, progress: float, first: float, last: float) -> float:
    """That of the last scores which so large a share of them reached; 0 before there is any.

    ``first``, ``last``: the share at the beginning of the training and at its end, on a straight line in between.
    """
    if not cache.scores:
        return 0.0
    return float(np.quantile(cache.scores, 1 - (first + (last - first) * progress)))
