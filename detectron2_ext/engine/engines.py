"""Who runs the iterations of a round and the validation after them: this project, or Detectron2."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from fvcore.common.config import CfgNode

from detectron2_ext.engine.checkpoints import RunCheckpoints
from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.loading import Batch
from detectron2_ext.engine.loop import train
from detectron2_ext.engine.metrics import Reporter
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.step import TrainingStep
from detectron2_ext.engine.validation import validate
from detectron2_ext.evaluation import Evaluation
from exchange import files
from exchange.errors import UserError

ENGINES = ("own", "detectron2")


@dataclass(frozen=True)
class Engine:
    """``train`` is called like :func:`train_round`, ``validate`` like
    :func:`~detectron2_ext.engine.validation.validate`."""

    train: Callable[..., None]
    validate: Callable[..., Evaluation | None]


def build_engine(name: str) -> Engine:
    """The engine called ``name``; raises UserError for Detectron2's where that is not installed."""
    if name == "own":
        return Engine(train_round, validate)
    if find_spec("detectron2") is None:
        raise UserError(
            "--engine detectron2: Detectron2 is not installed here; install what "
            "detectron2_ext/requirements-detectron2.txt lists (see README.md), or leave the option out"
        )
    from detectron2_ext.with_detectron2 import training, validation

    return Engine(training.train_round, validation.validate)


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
    """Trains from ``state.iteration`` to ``end``; metrics and checkpoints go to ``folder``.

    Raises UserError as :func:`~detectron2_ext.engine.loop.train` does.
    """
    metrics = files.join(folder, "metrics.json")
    with Reporter(metrics, state.iteration, end, title, ranks) as reporter:
        train(
            state,
            TrainingStep.from_config(state, ranks, cfg),
            loader,
            end,
            checkpoints=checkpoints,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            reporter=reporter,
            log_period=cfg.SOLVER.LOG_PERIOD,
            seed=cfg.SEED,
            ranks=ranks,
        )
