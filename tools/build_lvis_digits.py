"""Writes the data set LVIS-Digits in LVIS v1 format."""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.command_line import make_parser
from exchange.errors import run_cli
from tools.digits import samples, scenes


def build(out: str, seed: int) -> None:
    """Writes ``lvis_digits_{train,val}.json`` and ``images/`` into ``out``; the same bytes for the same seed."""
    parts = samples.split()
    rng = np.random.default_rng(seed)
    counts = {
        "train": scenes.long_tailed_counts(rng),
        "val": np.full(samples.NUM_CATEGORIES, scenes.VAL_INSTANCES_PER_CATEGORY),
    }
    composed, names = {}, {}
    for part in ("train", "val"):
        backgrounds = scenes.photographs(part)
        hands = scenes.deal(counts[part], rng)
        composed[part] = [
            scenes.compose(hand, parts[part], backgrounds, rng) for hand in tqdm(hands, f"{part} images")
        ]
        names[part] = [f"{part}_{index:05}.png" for index in range(1, len(hands) + 1)]
        for scene, name in zip(composed[part], names[part], strict=True):
            with files.atomic_writer(files.join(out, "images", name)) as file:
                Image.fromarray(scene.image).save(file, "PNG", compress_level=1)  # a third of the time
    for part in ("train", "val"):
        record = scenes.annotation_file(composed[part], names[part], part, counts_of=composed["train"])
        files.write_json(files.join(out, f"lvis_digits_{part}.json"), record)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "datasets/lvis_digits --seed 0")
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    build(args.out, args.seed)


if __name__ == "__main__":
    run_cli(main)
