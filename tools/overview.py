"""One picture of a finished quickstart: what was generated, what training saw, what it brought."""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from fvcore.common.config import CfgNode

from exchange import files
from exchange.catalog import read_training_set
from exchange.command_line import make_parser
from exchange.config import add_config_arguments, load_config
from exchange.errors import run_cli
from exchange.images import decode_rgba
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex
from exchange.run import num_rounds
from tools.outlines import PASTED, REAL

_COLUMNS, _NUM_TRAINING = 5, 4


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "runs/quickstart --out overview.png")
    parser.add_argument("run", metavar="RUN", help="run folder of the quickstart")
    parser.add_argument(
        "--out", metavar="FILE", help="PNG file (default: pictures/overview.png in the run folder)"
    )
    add_config_arguments(parser, "configs/digits/MRCA_digits.yaml")
    return parser


def main() -> None:
    from tools.quickstart import summarise

    args = build_parser().parse_intermixed_args()
    cfg, layout = load_config(args.config, args.opts), RunLayout(args.run.rstrip("/"))
    control = RunLayout(files.join(layout.root, "control"))
    summary = summarise(layout, control, num_rounds(cfg), cfg.SEGMENTER.LATEST_ROUND_ONLY)
    path = args.out or files.join(layout.pictures_dir, "overview.png")
    write_overview(cfg, layout, summary, path)
    print(path)


def write_overview(cfg: CfgNode, layout: RunLayout, summary: dict[str, Any], path: str) -> None:
    """Writes the picture of the run ``layout`` with the numbers of ``summary`` (see tools/quickstart.py)."""
    import matplotlib  # only now, with torch: seconds that --help should not take
    from matplotlib.figure import Figure

    from tools import sheets

    matplotlib.rcParams["font.size"] = 9
    last = len(summary["rounds"]) - 1
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    generated, training, gain = figure.subfigures(1, 3, width_ratios=(1.15, 1.1, 1))
    _draw_generated(generated, cfg, layout, last)
    generated.suptitle("1, 2  drawn where the segmenter is uncertain, cut out")
    axes = training.subplots()
    axes.imshow(sheets.training_sheet(cfg, layout, last, _NUM_TRAINING)[0])
    axes.axis("off")
    training.suptitle("3  pasted into training images")
    _draw_gain(gain, summary)
    gain.suptitle("what it brings, round by round")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    files.write_bytes(path, buffer.getvalue())


def _draw_generated(figure: Any, cfg: CfgNode, layout: RunLayout, round_: int) -> None:
    """Cut-outs of a round (of all up to it, if it has none), evenly spread over their classes, above their masks."""
    names = read_training_set(cfg)[0].category_names
    pool = PoolIndex(layout, [round_])
    if not len(pool):
        pool = PoolIndex(layout, [earlier for earlier in layout.pool_rounds() if earlier < round_])
    chosen = np.linspace(0, len(pool) - 1, min(2 * _COLUMNS, len(pool)), dtype=int)
    grid = figure.subplots(4, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for place, index in enumerate(chosen.tolist()):
        row, column = divmod(place, _COLUMNS)
        cutout = decode_rgba(pool.read(index), pool.name(index))
        for offset, picture in enumerate((cutout[..., :3], cutout[..., 3])):
            grid[2 * row + offset, column].imshow(picture, cmap="gray", vmin=0, vmax=255)
        grid[2 * row, column].set_title(names[pool.category_ids[index]], fontsize=8)


def _draw_gain(figure: Any, summary: dict[str, Any]) -> None:
    """Mask AP and APr of the rounds, the control's as broken lines."""
    axes = figure.subplots()
    labels = ["baseline"] + [f"round {entry['round']}" for entry in summary["rounds"]]
    for key, name, colour in (("ap_r", "APr (rare)", PASTED), ("ap", "AP", REAL)):
        values = [summary["baseline"][key]] + [entry[key] for entry in summary["rounds"]]
        colour = np.array(colour) / 255
        axes.plot(labels, values, marker="o", color=colour, label=name)
        axes.axhline(summary["control"][key], color=colour, linestyle="--", label=f"{name}, control")
    axes.set_ylabel("mask AP, %")
    axes.grid(alpha=0.3)
    axes.legend()


if __name__ == "__main__":
    run_cli(main)
