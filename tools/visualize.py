#!/usr/bin/env python3
"""Pictures to look at.

data: training images as the network sees them, with boxes, masks and class names; real objects in blue, pasted
ones in orange. predictions: what is in test images, and beside it what the run's last checkpoint (or MODEL.WEIGHTS, if
it is given here) finds in them, a colour for each class.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from fvcore.common.config import CfgNode

from exchange import files
from exchange.command_line import make_parser
from exchange.config import add_config_arguments, from_repository, load_config
from exchange.errors import UserError, run_cli
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.run import run_layout


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, "data --config configs/digits/MRCA_digits.yaml --num 9 OUTPUT_DIR runs/quickstart"
    )
    parser.add_argument("what", choices=["data", "predictions"], help="what the pictures show, see above")
    parser.add_argument("--num", type=int, default=16, metavar="N", help="number of images")
    parser.add_argument(
        "--round", type=int, metavar="R", help="whose pool to paste from (default: the newest)"
    )
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="S", help="lowest score of an object to draw"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="PNG file (default: one in pictures/ of the run folder)"
    )
    add_config_arguments(parser)
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    if args.num < 1:
        raise UserError(f"--num is {args.num}: ask for at least one image")

    from tools import sheets  # only now: seconds that --help should not take

    cfg = load_config(args.config, args.opts)
    layout = run_layout(cfg)
    if args.what == "data":
        round_ = max(layout.pool_rounds(), default=0) if args.round is None else args.round
        name = f"data_rd{round_:02}.png"
        sheet, pasted = sheets.training_sheet(cfg, layout, round_, args.num)
        record = dataclasses.asdict(pasted)
    else:
        checkpoint = _checkpoint(cfg, layout, given="MODEL.WEIGHTS" in args.opts[::2])
        name, record = "predictions.png", None
        sheet = sheets.prediction_sheet(cfg, checkpoint, args.num, args.score)
    path = args.out or files.join(layout.pictures_dir, name)
    files.write_bytes(path, encode_png(np.asarray(sheet), record))
    print(path)


def _checkpoint(cfg: CfgNode, layout: RunLayout, given: bool) -> str:
    """MODEL.WEIGHTS if ``given`` on the command line, else the run's last checkpoint if it has one."""
    from detectron2_ext.engine.round import run_checkpoints

    last = None if given else run_checkpoints(cfg, layout).latest()
    if last is None and not cfg.MODEL.WEIGHTS:
        raise UserError(f"{layout.train_dir} has no checkpoint: train first, or give MODEL.WEIGHTS FILE")
    return last or from_repository(cfg.MODEL.WEIGHTS)


if __name__ == "__main__":
    run_cli(main)
