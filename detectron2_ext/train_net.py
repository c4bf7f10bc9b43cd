"""Stage 3, one call per round, or one in all without rounds: train with copy-paste, evaluate, write the feedback.

    python -m detectron2_ext.train_net --config configs/MRCA/MRCA_R50.yaml [KEY VALUE …]
    python -m detectron2_ext.train_net --config FILE --eval-only [MODEL.WEIGHTS model.pth]

Several processes: start it with ``torchrun``, as ``launch.sh`` does.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from fvcore.common.config import CfgNode

from detectron2_ext.distributed import Ranks, join_ranks
from detectron2_ext.engine.loop import train_round
from detectron2_ext.engine.round import Engine, TrainingRun, run_checkpoints
from detectron2_ext.evaluation.evaluator import format_table, validate
from detectron2_ext.modeling import build_detector, load_weights
from exchange import files
from exchange.config import add_config_arguments, from_repository, load_config
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout
from exchange.run import open_run, run_layout

ENGINES = ("own", "detectron2")
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stage with the arguments of a command line, by default this process's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate on DATASETS.TEST: MODEL.WEIGHTS if given here, else the run's last checkpoint",
    )
    mode.add_argument(
        "--eval-initial", action="store_true", help="write the feedback of the starting weights and stop"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="with --eval-only: the run's last checkpoint, whatever MODEL.WEIGHTS is; a training goes on in any case",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="own", help="whose trainer, checkpointer and evaluator to use"
    )
    args = parser.parse_intermixed_args(arguments)
    engine = build_engine(args.engine)
    cfg = load_config(args.config, args.opts)
    with join_ranks(cfg.MODEL.DEVICE) as ranks:
        if not ranks.is_first:
            logging.disable(logging.INFO)
        if args.eval_only:
            evaluate_only(cfg, ranks, engine, given="MODEL.WEIGHTS" in args.opts[::2] and not args.resume)
            return
        layout = _open_together(cfg, ranks)
        _log_to_file(layout, ranks)
        run = TrainingRun(cfg, layout, ranks, engine)
        if args.eval_initial:
            run.evaluate_initial()
        else:
            run.finish_round()


def build_engine(name: str) -> Engine:
    """The engine called ``name``; raises UserError for Detectron2's where that is not installed."""
    if name == "own":
        return Engine(train_round, validate)
    if find_spec("detectron2") is None:
        raise UserError(
            "--engine detectron2: Detectron2 is not installed here; install what "
            "detectron2_ext/requirements-detectron2.txt lists (see README.md), or leave the option out"
        )
    from detectron2_ext.with_detectron2 import training

    return Engine(training.train_round, training.validate)


def evaluate_only(cfg: CfgNode, ranks: Ranks, engine: Engine, given: bool) -> None:
    """Evaluates MODEL.WEIGHTS if that was ``given`` on the command line, else the run's last checkpoint.

    Raises UserError when there is nothing to evaluate.
    """
    layout = run_layout(cfg)
    last = run_checkpoints(cfg, layout).latest()
    weights = from_repository(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    checkpoint = weights if given or last is None else last
    if checkpoint is None:
        raise UserError(
            f"nothing to evaluate: {layout.train_dir} has no checkpoint and MODEL.WEIGHTS is empty, set it"
        )
    model = build_detector(cfg).to(ranks.device)
    load_weights(model, checkpoint, use_ema=True)
    for name in cfg.DATASETS.TEST:
        folder = files.join(layout.train_dir, "inference")
        evaluation = engine.validate(cfg, model, name, folder, ranks, checkpoint=checkpoint)
        if evaluation:
            sys.stdout.write(f"{name}: {checkpoint}\n{format_table(evaluation)}\n")


def _open_together(cfg: CfgNode, ranks: Ranks) -> RunLayout:
    """The first process writes the settings of a new run, the others compare theirs."""
    if not ranks.is_first:
        ranks.barrier()
    layout = open_run(cfg, "train", "train/inference", "feedback")
    if ranks.is_first:
        ranks.barrier()
    return layout


def _log_to_file(layout: RunLayout, ranks: Ranks) -> None:
    """Also writes the log to ``train/log.txt``, where the run is a folder on this machine."""
    if not ranks.is_first or "://" in layout.root:
        return
    files.make_dirs(layout.train_dir)
    handler = logging.FileHandler(files.join(layout.train_dir, "log.txt"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    run_cli(main)
