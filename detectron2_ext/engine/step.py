"""One step of the optimisation: losses, gradients, clipping, update."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.loading import Batch
from detectron2_ext.engine.optimizer import Clip, build_clip
from detectron2_ext.engine.state import TrainingState
from exchange.errors import UserError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def mixed_precision(cfg: CfgNode) -> torch.dtype | None:
    """The number format of ``cfg.SOLVER.AMP``, None for full precision; UserError for one that there is not."""
    amp = cfg.SOLVER.AMP
    if amp.DTYPE not in _DTYPES:
        raise UserError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}: choose one of {', '.join(_DTYPES)}")
    return _DTYPES[amp.DTYPE] if amp.ENABLED else None


class TrainingStep:
    """Takes steps with the network and the optimiser of a state.

    ``accumulation``: number of parts that a batch is taken in, one after the other. ``dtype``: of the mixed
    precision, None for full precision.
    """

    def __init__(
        self, state: TrainingState, ranks: Ranks, clip: Clip, accumulation: int, dtype: torch.dtype | None
    ) -> None:
        self._state = state
        self._device = ranks.device.type
        self._network = ranks.parallel(state.model)
        self._clip = clip
        self._accumulation = accumulation
        self._dtype = dtype
        self._parameters = state.learning_parameters()

    @classmethod
    def from_config(cls, state: TrainingState, ranks: Ranks, cfg: CfgNode) -> TrainingStep:
        """A step as ``cfg.SOLVER`` describes it."""
        return cls(state, ranks, build_clip(cfg), cfg.SOLVER.ACCUMULATION_STEPS, mixed_precision(cfg))

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Moves weights, average and learning rate one iteration on; returns the losses, detached."""
        state = self._state
        parts = [batch[i :: self._accumulation] for i in range(min(self._accumulation, len(batch)))]
        totals: dict[str, Tensor] = {}
        state.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts):
            share = len(part) / len(batch)
            with self._gradients_stay_here(until_last=number < len(parts) - 1):
                with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
                    losses = self._network(part)
                total = torch.stack(list(losses.values())).sum() * share
                state.scaler.scale(total).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + loss.detach() * share
        state.scaler.unscale_(state.optimizer)
        self._clip(self._parameters)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.schedule.step()
        if state.ema:
            state.ema.update()
        state.iteration += 1
        return totals

    def _gradients_stay_here(self, until_last: bool) -> Any:
        if until_last and isinstance(self._network, DistributedDataParallel):
            return self._network.no_sync()
        return nullcontext()
