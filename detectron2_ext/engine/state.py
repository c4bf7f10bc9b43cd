"""Everything that changes while a network is trained, and so everything that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from detectron2_ext.engine.build_selection import build_cache
from detectron2_ext.engine.gradient_cache import GradientCache
from detectron2_ext.engine.optimizer import build_optimizer, build_schedule
from detectron2_ext.modeling.builder import trains_half_backbone
from detectron2_ext.modeling.detector import half_type
from exchange.config import at_least
from exchange.errors import UserError


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


@dataclass
class TrainingState:
    """The training after ``iteration`` iterations.

    There is no random state in it: what an iteration draws depends on the seed of the run and on its number.
    """

    model: nn.Module
    ema: ModelEma | None
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    iteration: int
    settings: str
    categories: Sequence[Mapping[str, Any]]
    cache: GradientCache | None = None  # of the gradient selection, where there is one

    @classmethod
    def start(
        cls, model: nn.Module, cfg: CfgNode, categories: Sequence[Mapping[str, Any]] = ()
    ) -> TrainingState:
        """The state before the first iteration, from a network that has its starting weights.

        ``categories``: records of the annotation file, sorted by id, one for each class.

        Raises UserError for a setting with a value that there is not.
        """
        for key in ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS"):
            at_least(1, cfg, key)
        if not 0 <= cfg.SOLVER.MODEL_EMA < 1:
            raise UserError(
                f"SOLVER.MODEL_EMA is {cfg.SOLVER.MODEL_EMA}: it is 0, for no average, or below 1"
            )
        optimizer = build_optimizer(model, cfg)
        device = next(model.parameters()).device
        half = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
        half = half or (trains_half_backbone(cfg) and half_type(device) is torch.float16)
        return cls(
            model=model,
            ema=ModelEma(model, cfg.SOLVER.MODEL_EMA) if cfg.SOLVER.MODEL_EMA else None,
            optimizer=optimizer,
            schedule=build_schedule(optimizer, cfg),
            scaler=torch.amp.GradScaler(device.type, enabled=half),
            iteration=0,
            settings=cfg.dump(),
            categories=[{"id": c["id"], "name": c["name"]} for c in categories],
            cache=build_cache(model, cfg),
        )

    @property
    def evaluated(self) -> nn.Module:
        """The network that stands for this state: the average, where there is one."""
        return self.ema.model if self.ema else self.model

    def learning_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """In the layout of Detectron2's checkpoints; ``iteration`` there is the last one done, from 0."""
        averaged = {"model_ema": self.ema.model.state_dict()} if self.ema else {}
        selection = {"selection": self.cache.state_dict()} if self.cache else {}
        return {
            "model": self.model.state_dict(),
            **averaged,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration - 1,
            "settings": self.settings,
            "categories": self.categories,
            **selection,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken, exactly."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.model.load_state_dict(state["model_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.cache:
            self.cache.load_state_dict(state["selection"])
        self.iteration = state["iteration"] + 1
