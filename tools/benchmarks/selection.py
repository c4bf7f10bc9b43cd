"""Gradient selection on LVIS-Digits: what a step costs, and whether cheaper scores decide as the exact one.

``ours`` and ``other`` are seconds (of the processor on a CPU, since machines are shared) of an accepted step with the
selection of BSGAL's release by the gradients of the box heads, and of a plain step on the same batch,
medians of turns taken alternately; ``steps`` has those of other selections, and of a refused one. Loading is not in
them. ``agreement``: along one training by the exact score (all parameters, test images in each iteration, momentum
0.1), the share of iterations in which another score decides as the exact one of its momentum, at the fixed threshold
and at the median of each, and their correlation; ``accepted`` is what a selection that accepts everything would agree
in.

The pool is that of a run on LVIS-Digits, $MRCA_SELECTION_RUN, by default runs/quickstart. $MRCA_SELECTION_STEPS: length
of the training, 150 by default.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import Batch
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.gradient_cache import GradientCache
from detectron2_ext.engine.loop import TrainingStep, seed_iteration
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.train_loader import build_train_loader
from detectron2_ext.modeling import build_detector, load_weights
from detectron2_ext.paste.build import build_pool
from exchange.catalog import read_training_set
from exchange.config import REPOSITORY, from_repository, load_config
from exchange.layout import RunLayout
from tools.benchmarks import times_as_much

TARGET = 1.5
_TURNS, _FIXED = 13, -0.05
_LAYERS = {
    "all": [],
    "heads": ["roi_heads.box_head", "roi_heads.box_predictor"],
    "last two": ["roi_heads.box_predictor", "fc2"],
    "classifiers": ["cls_score"],
}
_EVERY = (1, 2, 4, 8)
_MOMENTA = (0.1, 0.9)
_OURS = "heads, every 1"


def measure(device: str) -> dict[str, Any]:
    """Seconds of a step and shares of equal decisions, by layers and number of iterations between test images."""
    cfg = _config(device)
    agreement = _agreement(cfg, int(os.environ.get("MRCA_SELECTION_STEPS", 150)))
    seconds = _seconds(cfg)
    own, other = seconds[_OURS], seconds.pop("plain")
    return {
        "ours": own,
        "other": other,
        "unit": f"seconds per step of {cfg.SOLVER.IMS_PER_BATCH} images",
        **times_as_much(own, other, TARGET),
        "steps": {name: {"seconds": taken, "ratio": taken / other} for name, taken in seconds.items()},
        "agreement": agreement,
    }


class Watched(GradientCache):
    """Decides as the exact score does, and keeps what others would have given.

    Attributes:
        others: the scores of each iteration by momentum, layers and number of iterations between test images.
    """

    def __init__(self, network: nn.Module) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        super().__init__([p for _, p in named], _MOMENTA[0])
        places = np.cumsum([0, *(p.numel() for _, p in named)]).tolist()
        self._parts = {
            layers: [
                slice(first, end)
                for (name, _), first, end in zip(named, places[:-1], places[1:], strict=True)
                if not parts or any(part in name for part in parts)
            ]
            for layers, parts in _LAYERS.items()
        }
        self._caches: dict[tuple[float, str, int], Tensor] = {}
        self.others: dict[tuple[float, str, int], list[float]] = {}

    def update(self, gradient: Tensor) -> None:
        for layers in self._parts:
            mine = self._of(layers, gradient)
            for momentum, every in itertools.product(_MOMENTA, _EVERY):
                if self.updates % every == 0:
                    cache = self._caches.setdefault((momentum, layers, every), torch.zeros_like(mine))
                    cache.mul_(momentum).add_(mine, alpha=1 - momentum)
        super().update(gradient)

    def cosine(self, gradient: Tensor) -> float | None:
        for which, cache in self._caches.items():
            score = torch.cosine_similarity(cache, self._of(which[1], gradient), dim=0)
            self.others.setdefault(which, []).append(float(score))
        return super().cosine(gradient)

    def _of(self, layers: str, gradient: Tensor) -> Tensor:
        return torch.cat([gradient[part] for part in self._parts[layers]])


def _config(device: str, *overrides: str) -> CfgNode:
    run = os.environ.get("MRCA_SELECTION_RUN", "runs/quickstart")
    pool = ["INPUT.INST_POOL_FEED", "False", "INPUT.INST_POOL", "True", "INPUT.INST_POOL_PATH", run]
    of_release = ["MODEL.ACTIVE_ONCE_MODE", f"only_paste_{_FIXED}", "MODEL.ACTIVE_GRAD_LAYERS", "[]"]
    path = str(REPOSITORY / "configs/digits/BSGAL_digits.yaml")
    return load_config(path, [*pool, *of_release, "MODEL.DEVICE", device, *overrides])


def _start(cfg: CfgNode, dataset: DetectionDataset, counts: Sequence[int]) -> TrainingState:
    model = build_detector(cfg, counts).to(cfg.MODEL.DEVICE).to(memory_format=torch.channels_last).train()
    load_weights(model, from_repository(cfg.MODEL.WEIGHTS), use_ema=True)
    return TrainingState.start(model, cfg)


def _batches(cfg: CfgNode, dataset: DetectionDataset, number: int) -> Any:
    pool = build_pool(cfg, RunLayout(""), 0, dataset)
    return build_train_loader(cfg, start_iteration=0, num_iterations=number, dataset=dataset, pool=pool)


def _agreement(cfg: CfgNode, steps: int) -> dict[str, Any]:
    annotations, root = read_training_set(cfg)
    dataset = DetectionDataset(annotations, root)
    state = _start(cfg, dataset, annotations.image_counts().tolist())
    state.cache = watched = Watched(state.model)
    step = TrainingStep.from_config(state, Ranks(0, 1, torch.device(cfg.MODEL.DEVICE)), cfg)
    for batch in _batches(cfg, dataset, steps):
        seed_iteration(cfg.SEED, state.iteration, 0)
        step(batch)
    told: dict[str, Any] = {"steps": steps}
    for momentum in _MOMENTA:
        exact = np.array(watched.others[momentum, "all", 1])
        told[f"momentum {momentum:g}"] = {
            "accepted": float((exact >= _FIXED).mean()),
            "quartiles": ", ".join(f"{value:.3f}" for value in np.quantile(exact, (0.25, 0.5, 0.75))),
        }
    for (momentum, layers, every), found in watched.others.items():
        scores, exact = np.array(found), np.array(watched.others[momentum, "all", 1])
        at_median = (scores >= np.median(scores)) == (exact >= np.median(exact))
        told[f"momentum {momentum:g}"][f"{layers}, every {every}"] = {
            "fixed": float(((scores >= _FIXED) == (exact >= _FIXED)).mean()),
            "median": float(at_median.mean()),
            "correlation": float(np.corrcoef(scores, exact)[0, 1]),
        }
    return told


def _steps(cfg: CfgNode) -> dict[str, Callable[[], Any]]:
    """A plain step, a refused one, and accepted ones by layers, with test images and (``none due``) without."""
    annotations, root = read_training_set(cfg)
    dataset = DetectionDataset(annotations, root)
    counts = annotations.image_counts().tolist()
    (batch,) = _batches(cfg, dataset, 1)
    device = cfg.MODEL.DEVICE
    plain = load_config(str(REPOSITORY / "configs/digits/XPaste_digits.yaml"), ["MODEL.DEVICE", device])
    always = ["MODEL.ACTIVE_ONCE_MODE", "only_paste_-1"]
    settings = {"plain": plain, "refused": _config(device, "MODEL.ACTIVE_ONCE_MODE", "only_paste_2")}
    for name, parts in _LAYERS.items():
        layers = ["MODEL.ACTIVE_GRAD_LAYERS", str(parts)]
        settings[f"{name}, every 1"] = _config(device, *always, *layers)
        never = ["MODEL.ACTIVE_TEST_EVERY", "1000000"]
        settings[f"{name}, none due"] = _config(device, *always, *layers, *never)
    steps = {}
    for name, setting in settings.items():
        state = _start(setting, dataset, counts)
        step = TrainingStep.from_config(state, Ranks(0, 1, torch.device(device)), setting)
        steps[name] = _step(state, step, batch, name)
    return steps


def _seconds(cfg: CfgNode) -> dict[str, float]:
    """Of each step; where one of several iterations has test images, their mean."""
    steps = _steps(cfg)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(_TURNS + 1):
        for name, step in steps.items():
            seconds = _timed(step, cfg.MODEL.DEVICE)
            if turn:  # the first warms up
                taken[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name in _LAYERS:
        due, not_due = medians[f"{name}, every 1"], medians.pop(f"{name}, none due")
        for every in _EVERY[1:]:
            medians[f"{name}, every {every}"] = (due + (every - 1) * not_due) / every
    return medians


def _step(state: TrainingState, step: TrainingStep, batch: Batch, name: str) -> Callable[[], Any]:
    def run() -> Any:
        state.iteration = 1 if name.endswith("none due") else 0
        seed_iteration(0, 0, 0)
        return step(batch)

    return run


def _timed(step: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        started = time.process_time()
        step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started
