"""The weights of a checkpoint that are evaluated, as one safetensors file that says what it is of.

A quarter of the checkpoint's size, with the names of the categories and all settings as metadata; MODEL.WEIGHTS,
mrca predict, mrca draw and Predictor read it. Other weights of the network, such as a published baseline, are
described by --config. Categories that only the pool had (DATASETS.EXTRA_CATEGORIES) are cut off.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange.catalog import read_training_set, with_classes_of
from exchange.command_line import make_parser
from exchange.config import load_config
from exchange.errors import UserError, run_cli


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "runs/quickstart/train/model_0000299.pth digits.safetensors")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of a run, or other weights")
    parser.add_argument("out", metavar="OUT", help="file to write, called ….safetensors")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML whose settings, and whose training set's categories, the weights are of (default: as they say)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override those")
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    if not args.out.endswith(".safetensors"):
        raise UserError(f"{args.out} is to be written as safetensors: give a name that ends in .safetensors")

    # Only now: seconds that --help should not take.
    from detectron2_ext.modeling import build_detector, load_weights
    from detectron2_ext.modeling.described import (
        Category,
        read_described,
        without_extra_categories,
        write_described,
    )

    content = None
    if args.config:
        cfg = load_config(args.config, args.opts)
        annotations = read_training_set(cfg)[0]
        cfg = with_classes_of(cfg, annotations)
        categories = [Category(record["id"], record["name"]) for record in annotations.categories]
    else:
        described = read_described(args.checkpoint, args.opts)
        cfg, categories, content = described.cfg, described.categories, described.content
    model = build_detector(cfg)
    load_weights(model, args.checkpoint, use_ema=True, content=content)
    write_described(args.out, *without_extra_categories(model.state_dict(), cfg, categories))
    print(args.out)


if __name__ == "__main__":
    run_cli(main)
