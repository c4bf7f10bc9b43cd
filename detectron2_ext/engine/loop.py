"""The training loop, and one step of it."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from detectron2_ext.data.loader import Batch
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.build_selection import build_selection
from detectron2_ext.engine.checkpoints import Checkpoints, DecisionsFirst
from detectron2_ext.engine.gradient_selection import Selection, in_parts, learn_from_all
from detectron2_ext.engine.metrics import LossWatch, Reporter
from detectron2_ext.engine.optimizer import Clip, build_clip
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.tensorboard import shown
from exchange import files
from exchange.config import choose
from exchange.run import round_iterations, run_layout
from exchange.stopping import Stopped, put_off

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def train_round(
    cfg: CfgNode,
    state: TrainingState,
    loader: Iterable[Batch],
    stop: int,
    *,
    end: int,
    checkpoints: Checkpoints,
    folder: str,
    title: str,
    ranks: Ranks,
    board: SummaryWriter | None = None,
) -> None:
    """Trains from ``state.iteration`` to ``stop``; metrics and checkpoints go to ``folder``.

    ``end``: of the round, which progress and remaining time refer to. ``board``: of TensorBoard, if there is one.

    Raises UserError as :func:`train` does.
    """
    metrics = files.join(folder, "metrics.json")
    if state.cache:
        round_ = state.iteration // round_iterations(cfg)
        checkpoints = DecisionsFirst(checkpoints, run_layout(cfg), round_, state, ranks)
    with Reporter(metrics, state.iteration, end, title, ranks, board) as reporter:
        train(
            state,
            TrainingStep.from_config(state, ranks, cfg),
            shown(loader, board, state, cfg),
            stop,
            checkpoints=checkpoints,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            reporter=reporter,
            log_period=cfg.SOLVER.LOG_PERIOD,
            seed=cfg.SEED,
            ranks=ranks,
        )


def train(
    state: TrainingState,
    step: Callable[[Batch], dict[str, Tensor]],
    loader: Iterable[Batch],
    end: int,
    *,
    checkpoints: Checkpoints,
    checkpoint_period: int,
    reporter: Reporter,
    log_period: int,
    seed: int,
    ranks: Ranks,
) -> None:
    """Trains from ``state.iteration`` to ``end``; saves every ``checkpoint_period`` (0: only) and at the end.

    ``loader`` yields this process's part of the batches from that iteration on. Equal seeds give equal
    weights, whether or not the training was interrupted in between.

    Raises UserError for a loss that is not finite, a loader process that died, a checkpoint that cannot be
    written; the last checkpoint is intact then. Raises Stopped, where a signal asks one of the processes to end, in all
    of them, after the same iteration and a checkpoint of it.
    """
    state.model.train()
    watch = LossWatch(ranks)
    batches = iter(loader)
    stopped = False
    with put_off() as is_asked_to_stop:
        while state.iteration < end and not stopped:
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked

            seed_iteration(seed, state.iteration, ranks.rank)
            learning_rate = state.optimizer.param_groups[0]["lr"]
            losses = step(batch)

            watch.add(state.iteration, losses, [record["file_name"] for record in batch], waited)
            reporter.step()
            saving = state.iteration == end or is_due(state.iteration, checkpoint_period)
            stopped = ranks.any(is_asked_to_stop())
            if saving or stopped or is_due(state.iteration, log_period):
                reporter.report(state.iteration, learning_rate, watch.look())
            if saving or stopped:
                if ranks.is_first:
                    checkpoints.save(state)
                ranks.barrier()
    if stopped:
        raise Stopped(signal.SIGTERM)


def is_due(iteration: int, period: int) -> bool:
    """Whether something that is done every ``period`` iterations, 0: never, is to be done after this one."""
    return period > 0 and iteration % period == 0


class TrainingStep:
    """Takes steps with the network and the optimiser of a state.

    ``accumulation``: number of parts that a batch is taken in, one after the other. ``dtype``: of the mixed
    precision, None for full precision. ``select``: chooses what of a batch is learnt from.
    """

    def __init__(
        self,
        state: TrainingState,
        ranks: Ranks,
        clip: Clip,
        accumulation: int,
        dtype: torch.dtype | None,
        select: Selection = learn_from_all,
    ) -> None:
        self._state = state
        self._device = ranks.device.type
        self._network = ranks.parallel(state.model)
        self._clip = clip
        self._accumulation = accumulation
        self._dtype = dtype
        self._parameters = state.learning_parameters()
        self._select = select

    @classmethod
    def from_config(cls, state: TrainingState, ranks: Ranks, cfg: CfgNode) -> TrainingStep:
        """A step as ``cfg.SOLVER`` describes it."""
        parts = (build_clip(cfg), cfg.SOLVER.ACCUMULATION_STEPS, mixed_precision(cfg))
        if state.cache is None:
            return cls(state, ranks, *parts)
        select = build_selection(cfg, state.model, state.cache, state.scaler, ranks)
        return cls(state, ranks, *parts, select)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Moves weights, average and learning rate one iteration on; returns the losses, detached."""
        state = self._state
        batch, losses_of = self._select(batch, self._losses, state.iteration)
        parts = in_parts(batch, self._accumulation)
        totals: dict[str, Tensor] = {}
        state.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts):
            share = len(part) / len(batch)
            with self._gradients_stay_here(until_last=number < len(parts) - 1):
                losses = losses_of(part)
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

    def _losses(
        self, part: Batch, network: Callable[..., dict[str, Tensor]] | None = None, **options: bool
    ) -> dict[str, Tensor]:
        """Of ``network`` in this step's precision; by default of the one whose gradients all processes share."""
        with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            return (self._network if network is None else network)(part, **options)

    def _gradients_stay_here(self, until_last: bool) -> Any:
        if until_last and isinstance(self._network, DistributedDataParallel):
            return self._network.no_sync()
        return nullcontext()


def mixed_precision(cfg: CfgNode) -> torch.dtype | None:
    """The number format of ``cfg.SOLVER.AMP``, None for full precision; UserError for one that there is not."""
    dtype = choose(cfg, "SOLVER.AMP.DTYPE", _DTYPES)
    return dtype if cfg.SOLVER.AMP.ENABLED else None


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Makes everything that this iteration draws a matter of the run's seed, its number and the rank."""
    digest = hashlib.blake2b(f"iteration/{seed}/{iteration}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)
