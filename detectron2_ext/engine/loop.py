"""The training loop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from detectron2_ext.engine.checkpoints import RunCheckpoints
from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.loading import Batch, load_batches
from detectron2_ext.engine.metrics import LossWatch, Reporter
from detectron2_ext.engine.state import TrainingState


def train(
    state: TrainingState,
    step: Callable[[Batch], dict[str, Tensor]],
    loader: Iterable[Batch],
    end: int,
    *,
    checkpoints: RunCheckpoints,
    checkpoint_period: int,
    reporter: Reporter,
    log_period: int,
    seed: int,
    ranks: Ranks,
) -> None:
    """Trains from ``state.iteration`` to ``end``; saves every ``checkpoint_period`` and at the end.

    ``loader`` yields this process's part of the batches from that iteration on. Equal seeds give equal
    weights, whether or not the training was interrupted in between.

    Raises UserError for a loss that is not finite, a loader process that died, a checkpoint that cannot be
    written; the last checkpoint is intact then.
    """
    state.model.train()
    watch = LossWatch(ranks)
    batches = load_batches(loader)
    while state.iteration < end:
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked

        seed_iteration(seed, state.iteration, ranks.rank)
        learning_rate = state.optimizer.param_groups[0]["lr"]
        losses = step(batch)

        watch.add(state.iteration, losses, [record["file_name"] for record in batch], waited)
        reporter.step()
        saving = state.iteration == end or state.iteration % checkpoint_period == 0
        if saving or state.iteration % log_period == 0:
            reporter.report(state.iteration, learning_rate, watch.look())
        if saving:
            if ranks.is_first:
                checkpoints.save(state)
            ranks.barrier()


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Makes everything that this iteration draws a matter of the run's seed, its number and the rank."""
    digest = hashlib.blake2b(f"iteration/{seed}/{iteration}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)
