"""A round trained by Detectron2's trainer, its hooks and its checkpointer.

The network, the images, the optimiser, the schedule and the average are this project's. A checkpoint holds the same
under the same names whichever engine wrote it, so a run may change engines between any two calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, default_writers, hooks
from fvcore.common.config import CfgNode
from torch import nn

from detectron2_ext.engine.checkpoints import RunCheckpoints
from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.loading import Batch, load_batches
from detectron2_ext.engine.loop import seed_iteration
from detectron2_ext.engine.optimizer import Clip, build_clip
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.step import mixed_precision
from exchange.errors import UserError


def train_round(
    cfg: CfgNode,
    state: TrainingState,
    loader: Iterable[Batch],
    end: int,
    *,
    checkpoints: RunCheckpoints,
    folder: str,
    title: str,
    ranks: Ranks,
) -> None:
    """As :func:`detectron2_ext.engine.engines.train_round`; ``title`` is not shown.

    Raises UserError, besides, for settings that Detectron2's trainer has no counterpart of.
    """
    _check(cfg, folder, ranks)
    parts = {"optimizer": state.optimizer, "scheduler": state.schedule, "scaler": state.scaler}
    if state.ema:
        parts["model_ema"] = state.ema.model
    checkpointer = DetectionCheckpointer(state.model, folder, save_to_disk=ranks.is_first, **parts)
    batches = _SeededBatches(loader, state, cfg.SEED, ranks.rank)
    trainer = _build_trainer(cfg, ranks.parallel(state.model), batches, state)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            _Follow(state, build_clip(cfg)),
            hooks.LRScheduler(state.optimizer, state.schedule),
            _Save(state, checkpointer, checkpoints, cfg.SOLVER.CHECKPOINT_PERIOD, ranks),
            hooks.PeriodicWriter(default_writers(folder, end), cfg.SOLVER.LOG_PERIOD)
            if ranks.is_first
            else None,
        ]
    )
    try:
        trainer.train(state.iteration, end)
    except FloatingPointError as error:
        raise UserError(
            f"{str(error).splitlines()[0]} Lower SOLVER.BASE_LR, or train with --engine own, which names the images; "
            "the last checkpoint is intact"
        ) from error


def _check(cfg: CfgNode, folder: str, ranks: Ranks) -> None:
    if cfg.SOLVER.ACCUMULATION_STEPS != 1:
        raise UserError("SOLVER.ACCUMULATION_STEPS: Detectron2's trainer has no such thing, set it to 1")
    if cfg.SOLVER.AMP.ENABLED and ranks.device.type != "cuda":
        raise UserError("SOLVER.AMP.ENABLED: Detectron2's mixed precision needs a GPU, set it to False")
    if "://" in folder:
        raise UserError(f"OUTPUT_DIR: Detectron2 writes to folders of this machine, not to {folder}")


def _build_trainer(
    cfg: CfgNode, network: nn.Module, batches: Iterable[Batch], state: TrainingState
) -> SimpleTrainer:
    dtype = mixed_precision(cfg)
    if dtype is None:
        return SimpleTrainer(network, batches, state.optimizer)
    return AMPTrainer(network, batches, state.optimizer, grad_scaler=state.scaler, precision=dtype)


class _SeededBatches:
    """The batches, each handed out with the random numbers of its iteration set."""

    def __init__(self, loader: Iterable[Batch], state: TrainingState, seed: int, rank: int) -> None:
        self._loader, self._state, self._seed, self._rank = loader, state, seed, rank

    def __iter__(self) -> Iterator[Batch]:
        for batch in load_batches(self._loader):
            seed_iteration(self._seed, self._state.iteration, self._rank)
            yield batch


class _Follow(HookBase):
    """What a step of this project does around the optimiser's: clipping before it, the average after it."""

    def __init__(self, state: TrainingState, clip: Clip) -> None:
        self._state, self._clip = state, clip

    def after_backward(self) -> None:
        self._state.scaler.unscale_(self._state.optimizer)
        self._clip(self._state.learning_parameters())

    def after_step(self) -> None:
        if self._state.ema:
            self._state.ema.update()
        self._state.iteration += 1


class _Save(HookBase):
    """Checkpoints where the own loop writes them, under the names that it gives them."""

    def __init__(
        self,
        state: TrainingState,
        checkpointer: DetectionCheckpointer,
        checkpoints: RunCheckpoints,
        period: int,
        ranks: Ranks,
    ) -> None:
        self._state, self._checkpointer, self._checkpoints = state, checkpointer, checkpoints
        self._period, self._ranks = period, ranks

    def after_step(self) -> None:
        done: int = self._state.iteration
        if done % self._period and done != self.trainer.max_iter:
            return
        if self._ranks.is_first:
            name = self._checkpoints.path(done).rsplit("/", 1)[1].removesuffix(".pth")
            rest: dict[str, Any] = {"iteration": done - 1, "settings": self._state.settings}
            self._checkpointer.save(name, **rest)
            self._checkpoints.prune(done)
        self._ranks.barrier()
