"""Ten iterations of several works, one after the other, in as many processes as there are.

``ten_steps.py FOLDER``: of all of ``WORKS``, each in a folder of its name.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from fvcore.common.config import CfgNode
from torch import nn

from detectron2_ext.distributed import Ranks, join_ranks
from detectron2_ext.engine.checkpoints import RunCheckpoints, read_checkpoint
from detectron2_ext.engine.loop import TrainingStep, train
from detectron2_ext.engine.metrics import Reporter
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling import build_model
from exchange.stopping import Stopped, listening
from tests.detectron2_ext.engine.selected import batch_of, selecting_config
from tests.detectron2_ext.engine.tiny import TinyLoader, TinyNet, tiny_config
from tests.detectron2_ext.modeling.network_scenes import scene, small_config

Batches = Iterator[list[dict[str, Any]]]


def regression(ranks: Ranks) -> tuple[CfgNode, nn.Module, Batches]:
    """The small regression, which draws nothing at random and takes a batch in two parts."""
    cfg = tiny_config(
        *("SOLVER.ACCUMULATION_STEPS", "2"),
        *("SOLVER.MAX_ITER", "10", "SOLVER.WARMUP_ITERS", "2", "SOLVER.BASE_LR", "0.01"),
        *("SOLVER.MODEL_EMA", "0.9", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.2"),
    )
    batches = iter(TinyLoader(0, 10, rank=ranks.rank, world_size=ranks.world_size))
    return cfg, TinyNet(noise=0.0), batches


def stopped(ranks: Ranks) -> tuple[CfgNode, nn.Module, Batches]:
    """As the regression, but the last process alone is asked to end, at its fourth batch."""
    cfg, model, batches = regression(ranks)

    def disturbed() -> Batches:
        for number, batch in enumerate(batches, start=1):
            if number == 4 and ranks.rank == ranks.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return cfg, model, disturbed()


def detector(ranks: Ranks) -> tuple[CfgNode, nn.Module, Batches]:
    """CenterNet2 with images of different numbers of positive pixels.

    The heads' losses are means over a process's boxes, as in the reference, which are means over all boxes where
    the images have equally many: here all proposals and objects, of which only the objects' own boxes overlap
    enough. So nothing is drawn at random either. AdamW would make whole steps of the rounding of a gradient that is
    nearly zero.
    """
    cfg = small_config(
        TIMM__NORM="FrozenBN",
        CENTERNET__NMS_TH_TRAIN=1.0,
        CENTERNET__POST_NMS_TOPK_TRAIN=20,
        ROI_BOX_HEAD__USE_FED_LOSS=False,
        ROI_BOX_CASCADE_HEAD__IOUS=[0.95, 0.95, 0.95],
        ROI_HEADS__BATCH_SIZE_PER_IMAGE=64,
        ROI_HEADS__POSITIVE_FRACTION=1.0,
    )
    cfg.defrost()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.MODEL_EMA = "SGD", 0.1, 0.9
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 10, 2
    batches = (
        [scene(seed=4 * iteration + i) | {"file_name": f"{i}.png"} for i in range(4)]
        for iteration in range(10)
    )
    return cfg, build_model(cfg), (batch[ranks.rank :: ranks.world_size] for batch in batches)


def selection(ranks: Ranks) -> tuple[CfgNode, nn.Module, Batches]:
    """The detector with a gradient selection for all processes together, whose threshold some batches reach.

    As of the other losses, those of test images and of pasted objects are means over a process's boxes, of which all
    images have equally many.
    """
    cfg = selecting_config(
        MODEL__ACTIVE_TOGETHER=True,
        MODEL__ROI_BOX_CASCADE_HEAD__IOUS=[0.95, 0.95, 0.95],
        MODEL__ACTIVE_ONCE_MODE="only_paste_dynamic_0.5",
        **{"SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.1, "SOLVER__MODEL_EMA": 0.9},
        **{"SOLVER__MAX_ITER": 10, "SOLVER__WARMUP_ITERS": 2},
    )
    batches = (batch_of(iteration, 4)[ranks.rank :: ranks.world_size] for iteration in range(10))
    return cfg, build_model(cfg), batches


def apart(ranks: Ranks) -> tuple[CfgNode, nn.Module, Batches]:
    """As the selection, but each process decides for itself, and the first one's images have no test images.

    Batch norm's statistics are each process's own.
    """
    cfg, _, batches = selection(ranks)
    cfg.MODEL.ACTIVE_TOGETHER, cfg.MODEL.TIMM.NORM = False, "BN"

    def without_tests() -> Batches:
        for batch in batches:
            yield batch if ranks.rank else [record | {"test": None} for record in batch]

    return cfg, build_model(cfg), without_tests()


WORKS = {
    "regression": regression,
    "detector": detector,
    "selection": selection,
    "apart": apart,
    "resumed": apart,  # from the checkpoint of its fifth iteration
    "stopped": stopped,
}


@contextmanager
def in_float64() -> Iterator[None]:
    """Makes float64 of what is float32 elsewhere, also where the network asks for it by ``.float()``: then the order
    of a sum, another one in each process and on each processor, does not show."""
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@in_float64()
def ten_steps(work: str, folder: str, ranks: Ranks) -> None:
    """Leaves checkpoint and metrics of the ten iterations in ``folder``, and each process's weights.

    ``rankN.pth`` has its ``own`` trained ones, and the ``shared`` ones that it evaluates, after so many ``iterations``.
    """
    torch.manual_seed(ranks.rank)  # the first process decides about the starting weights
    cfg, model, batches = WORKS[work](ranks)
    state = TrainingState.start(model, cfg)
    if work == "resumed":
        state.load_state_dict(read_checkpoint(f"{Path(folder).parent}/apart/model_0000004.pth"))
        batches = islice(batches, state.iteration, None)
    reporting = Reporter(f"{folder}/metrics.json", state.iteration, 10, "round 0", ranks)
    with suppress(Stopped), listening(), reporting as reporter:
        train(
            state,
            TrainingStep.from_config(state, ranks, cfg),
            batches,
            10,
            checkpoints=RunCheckpoints(folder, 10, 2),
            checkpoint_period=5,
            reporter=reporter,
            log_period=2,
            seed=0,
            ranks=ranks,
        )
    ranks.share(state.evaluated.state_dict().values())
    content = {"own": state.model.state_dict(), "shared": state.evaluated.state_dict()}
    if state.cache:
        content["selection"] = state.cache.state_dict()
        content["decisions"] = [asdict(decision) for decision in state.cache.decisions]
    torch.save(content | {"iterations": state.iteration}, f"{folder}/rank{ranks.rank}.pth")


def main(folder: str) -> None:
    with join_ranks("cpu") as ranks:
        for work in WORKS:
            ten_steps(work, f"{folder}/{work}", ranks)


if __name__ == "__main__":
    main(sys.argv[1])
