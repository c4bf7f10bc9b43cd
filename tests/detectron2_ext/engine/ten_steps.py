"""Ten iterations of the small regression in as many processes as there are: ``ten_steps.py FOLDER``."""

from __future__ import annotations

import sys

import torch

from detectron2_ext.engine.checkpoints import RunCheckpoints
from detectron2_ext.engine.distributed import join_ranks
from detectron2_ext.engine.loop import train
from detectron2_ext.engine.metrics import Reporter
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.step import TrainingStep
from tests.detectron2_ext.engine.tiny import TinyLoader, TinyNet, tiny_config


def ten_steps(folder: str) -> None:
    """Leaves checkpoint and metrics of the ten iterations in ``folder``."""
    cfg = tiny_config(
        *("SOLVER.MAX_ITER", "10", "SOLVER.WARMUP_ITERS", "2", "SOLVER.BASE_LR", "0.01"),
        *("SOLVER.MODEL_EMA", "0.9", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.2"),
    )
    with join_ranks("cpu") as ranks:
        torch.manual_seed(ranks.rank)  # the first process decides about the starting weights
        state = TrainingState.start(TinyNet(noise=0.0), cfg)
        with Reporter(f"{folder}/metrics.json", 0, 10, "round 0", ranks) as reporter:
            train(
                state,
                TrainingStep.from_config(state, ranks, cfg),
                TinyLoader(0, 10, rank=ranks.rank, world_size=ranks.world_size),
                10,
                checkpoints=RunCheckpoints(folder, 10, 1),
                checkpoint_period=5,
                reporter=reporter,
                log_period=2,
                seed=0,
                ranks=ranks,
            )


if __name__ == "__main__":
    ten_steps(sys.argv[1])
