"""Draws images of one category as PNG files, guided by a checkpoint as in stage 1.

Models, prompts and guidance are those of the checkpoint's settings; settings at the end override them.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from exchange import files
from exchange.command_line import make_parser, quiet_model_libraries
from exchange.errors import UserError, run_cli
from exchange.images import encode_png


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, '"red three" --num 20 --run runs/quickstart --out threes GENERATOR.STEPS 30'
    )
    parser.add_argument("name", metavar="NAME", help="name of a category, as in the annotations")
    parser.add_argument("--num", type=int, default=8, metavar="N", help="number of images")
    parser.add_argument("--out", metavar="OUT", required=True, help="folder to write to")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="RUN", help="run folder, whose last checkpoint guides")
    source.add_argument("--weights", metavar="FILE", help="a checkpoint, or what mrca export wrote")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise")
    parser.add_argument("--unguided", action="store_true", help="without the checkpoint's network")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="settings that override the checkpoint's"
    )
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    if args.num < 1:
        raise UserError(f"--num is {args.num}: ask for at least one image")

    from generator.painter import Painter  # only now: seconds that --help should not take

    quiet_model_libraries()
    load = Painter.from_run if args.run else Painter.from_checkpoint
    painter = load(args.run or args.weights, args.opts, guided=not args.unguided)
    name = args.name.replace("/", "-").replace("\\", "-")
    for number, image in enumerate(painter.draw(args.name, args.num, args.seed)):
        path = files.join(args.out, f"{name} {number:04}.png")
        files.write_bytes(path, encode_png(np.asarray(image)))
    print(f"{args.num} images: {args.out}")


if __name__ == "__main__":
    run_cli(main)
