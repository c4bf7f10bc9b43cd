"""Stage 3, one call per round, or one in all without rounds: train with copy-paste, evaluate, write the feedback.

A training that was stopped goes on where it was. With --eval-only it prints the scores of a checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fvcore.common.config import CfgNode

from exchange import files
from exchange.catalog import read_training_set, with_classes_of, with_extra_categories
from exchange.command_line import make_parser
from exchange.config import REPOSITORY, add_config_arguments, from_repository, load_config
from exchange.errors import UserError, run_cli
from exchange.locks import only_one
from exchange.logs import log_to_run
from exchange.run import open_run, run_layout

if TYPE_CHECKING:
    from detectron2_ext.distributed import Ranks
    from detectron2_ext.engine.round import Engine

ENGINES = ("own", "detectron2")
_log = logging.getLogger("train")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(  # an example for mrca evaluate and mrca feedback, too
        __doc__,
        "--config configs/digits/MRCA_digits.yaml MODEL.WEIGHTS assets/digits/segmenter/model.safetensors",
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
        "--per-class", action="store_true", help="with --eval-only: the scores of each class, too"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="own", help="whose trainer, checkpointer and evaluator to use"
    )
    add_process_arguments(parser)
    return parser


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how many processes train together."""
    for name, what in (("num-gpus", "processes of this machine, one a GPU"), ("num-machines", "machines")):
        parser.add_argument(f"--{name}", type=int, default=1, metavar="N", help=what)
    machine = "number of this machine, from 0; MASTER_ADDR and MASTER_PORT are the same on all (default: $RANK, or 0)"
    parser.add_argument("--machine-rank", type=int, metavar="R", help=machine)


def launch(arguments: Sequence[str]) -> None:
    """Becomes ``launch.sh``, which starts this by torchrun; it takes those options in full, before their numbers."""
    parser = argparse.ArgumentParser(add_help=False)
    add_process_arguments(parser)
    given, rest = parser.parse_known_args(arguments)
    numbers = {f"--{n.replace('_', '-')}": v for n, v in vars(given).items() if v != parser.get_default(n)}
    words = [str(word) for option in numbers.items() for word in option]
    command = ["bash", str(REPOSITORY / "launch.sh"), *words, *rest]
    os.execvpe("bash", command, {"MRCA_PYTHON": sys.executable} | os.environ)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stage with the arguments of a command line, by default this process's."""
    args = build_parser().parse_intermixed_args(arguments)
    if args.num_gpus > 1 or args.num_machines > 1:
        launch(sys.argv[1:] if arguments is None else arguments)
    cfg = load_config(args.config, args.opts)

    # Only now: seconds that --help and a mistake in the configuration should not take.
    from detectron2_ext.distributed import join_ranks
    from detectron2_ext.engine.round import TrainingRun

    engine = build_engine(args.engine)
    with join_ranks(cfg.MODEL.DEVICE) as ranks:
        if not ranks.is_first:
            logging.disable(logging.INFO)
        if args.eval_only:
            given = "MODEL.WEIGHTS" in args.opts[::2] and not args.resume
            evaluate_only(cfg, ranks, engine, given, args.per_class)
            return
        training_set = read_training_set(cfg)
        cfg = with_classes_of(cfg, training_set[0])
        evaluated = [f"train/inference/{name}" for name in cfg.DATASETS.TEST]
        layout = open_run(cfg, "train", "train/decisions", *evaluated, "feedback")
        with only_one(layout, "train") if ranks.is_first else nullcontext():
            if ranks.is_first:
                log_to_run(layout, "train", ranks.rank)
            _log.info("run folder: %s", layout.root)
            run = TrainingRun(cfg, layout, ranks, engine, training_set)
            if args.eval_initial:
                run.evaluate_initial()
            else:
                run.finish_round()


def build_engine(name: str) -> Engine:
    """The engine called ``name``; raises UserError for Detectron2's where that is not installed."""
    from detectron2_ext.engine.loop import train_round
    from detectron2_ext.engine.round import Engine
    from detectron2_ext.evaluation import evaluator

    if name == "own":
        return Engine(train_round, evaluator.validate)
    if find_spec("detectron2") is None:
        raise UserError(
            "--engine detectron2: Detectron2 is not installed here; install what "
            "detectron2_ext/requirements-detectron2.txt lists (see README.md), or leave the option out"
        )
    from detectron2_ext.with_detectron2 import training

    return Engine(training.train_round, training.validate)


def evaluate_only(cfg: CfgNode, ranks: Ranks, engine: Engine, given: bool, per_class: bool = False) -> None:
    """Prints the scores of MODEL.WEIGHTS if that was ``given`` on the command line, else of the run's last checkpoint.

    ``per_class``: of each class, too. Raises UserError when there is nothing to evaluate.
    """
    from detectron2_ext import modeling
    from detectron2_ext.engine.round import evaluating, run_checkpoints
    from detectron2_ext.evaluation.evaluator import (
        explain_nothing,
        format_classes,
        format_table,
        read_test_sets,
    )

    layout = run_layout(cfg)
    last = run_checkpoints(cfg, layout).latest()
    weights = from_repository(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    checkpoint = weights if weights and (given or last is None) else last
    if checkpoint is None:
        raise UserError(
            f"nothing to evaluate: {layout.train_dir} has no checkpoint and MODEL.WEIGHTS is empty, set it"
        )
    test_sets = read_test_sets(cfg)
    known = with_extra_categories(cfg, next(iter(test_sets.values())))
    cfg = with_classes_of(cfg, known)
    model = modeling.build_detector(cfg).to(ranks.device)
    modeling.load_weights(model, checkpoint, use_ema=True, classes=list(known.category_names.values()))
    for name, test_set in test_sets.items():
        folder = files.join(layout.train_dir, "inference")
        with evaluating(layout, ranks):
            evaluation = engine.validate(cfg, model, name, folder, ranks, checkpoint=checkpoint)
        if evaluation:
            tables = [format_table(evaluation)]
            tables += [format_classes(evaluation, test_set)] if per_class else []
            tables += [why] if (why := explain_nothing(evaluation)) else []
            text = "\n".join(tables)
            written = files.join(folder, name)
            sys.stdout.write(f"{name}: {checkpoint}\n{text}\nscores and predictions: {written}\n")


if __name__ == "__main__":
    run_cli(main)
