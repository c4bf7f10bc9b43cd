"""How many instances of runs of LVIS-Digits are not what they should be, before and after each filter?

Told by a classifier that the pipeline does not use, and by masks from the plain background of the generated pictures.
The last row is what both say of real validation digits with their true masks, which all are as they should be.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tabulate import tabulate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diSegmenter.filter import InstanceFilter
from diSegmenter.finish_round import read_filter
from diSegmenter.report import contact_sheet, framed_pair
from exchange import files
from exchange.command_line import make_parser
from exchange.errors import UserError, run_cli
from exchange.images import BadImage, encode_png, read_rgba
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance
from tools.digits import pictures, samples
from tools.digits.classifier import DigitClassifier, coverage_of

KINDS = ("nothing", "several parts", "cut wrongly", "not the class")
VALID = ""
_LOWEST_IOU = 0.8
_SECOND = 0.1  # of the largest part's pixels: what is smaller is a speck
_MEASURES = {"clip": "clip_score"}  # where the attribute is not called as the threshold
_NO_FILTER = InstanceFilter(-math.inf, (-1.0, 2.0), 0, False)

_Picture = npt.NDArray[np.uint8]


def examine(picture: _Picture, alpha: _Picture, category_id: int, classify: DigitClassifier) -> str:
    """What is wrong with a picture of a digit or its mask: the first of KINDS that applies, or VALID.

    Args:
        picture: uint8 (H, W, 3), on a plain background.
        alpha: its mask, uint8 (H, W).
    """
    digit, ink = classify(picture)
    if digit < 0:
        return "nothing"
    solid, cut = coverage_of(picture) > 0.5, alpha > 127
    areas = np.sort(cv2.connectedComponentsWithStats(solid.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA])
    if len(areas) > 1 and areas[-2] >= _SECOND * areas[-1]:
        return "several parts"
    if (solid & cut).sum() < _LOWEST_IOU * (solid | cut).sum():
        return "cut wrongly"
    return VALID if (digit, ink) == divmod(category_id - 1, len(samples.INKS)) else "not the class"


def real_pictures() -> Iterator[tuple[_Picture, _Picture, int]]:
    """Real validation digits as stage 1 draws its own, in each ink: picture, true mask and category id."""
    part, rng = samples.split()["val"], np.random.default_rng(0)
    for pixels, digit in zip(part.pixels, part.labels.tolist(), strict=True):
        for ink in range(len(samples.INKS)):
            picture = pictures.plain(bool(rng.random() < 0.5), rng)
            mask = pictures.place(picture, pixels, ink, rng, heights=(46, 54), off_centre=2)
            yield picture, np.rint(255 * mask).astype(np.uint8), digit * len(samples.INKS) + ink + 1


def kept_by(instances: Sequence[PoolInstance], judged_by: InstanceFilter) -> dict[str, list[bool]]:
    """Which instances each measure keeps that was taken, by its own threshold alone, and which all checks keep."""
    found = {}
    for field in dataclasses.fields(InstanceFilter):
        measure = field.name.removesuffix("_threshold")
        values = (
            [getattr(i, _MEASURES.get(measure, measure)) for i in instances] if measure != field.name else []
        )
        if any(value is not None for value in values):
            alone = dataclasses.replace(_NO_FILTER, **{field.name: getattr(judged_by, field.name)})
            found[f"kept by {measure} alone"] = [not alone.reason(instance) for instance in instances]
    return found | {"kept": [not instance.reason for instance in instances]}


def read_pair(layout: RunLayout, name: str) -> tuple[_Picture, _Picture]:
    """Generated image, (H, W, 3), and its mask, (H, W); UserError where one is gone or damaged."""
    try:
        return read_rgba(layout.raw(name))[..., :3], read_rgba(layout.segmented(name))[..., 0]
    except BadImage as error:
        raise UserError(
            f"{error}: generated images and masks are looked at, so take a run with SEGMENTER.KEEP_RAW True that was "
            "not pruned"
        ) from error


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "runs/quickstart --sheet invalid.png")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders; what they made is added up")
    parser.add_argument(
        "--sheet",
        metavar="FILE",
        help="write a picture of what is kept and called invalid there (default: nowhere)",
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    classify = DigitClassifier()
    told: dict[str, Counter[str]] = {"made": Counter()}
    pairs, captions = [], []
    for layout in (RunLayout(run.rstrip("/")) for run in args.runs):
        for round_ in layout.pool_rounds():
            judged_by = read_filter(layout, round_)
            if judged_by is None:
                raise UserError(
                    f"{layout.root} does not say what round {round_} was judged by: take a run of stage 2"
                )
            instances = list(PoolIndex(layout, [round_], dropped_too=True))
            kept = {"made": [True] * len(instances)} | kept_by(instances, judged_by)
            for place, instance in enumerate(
                tqdm(instances, f"{layout.root}, round {round_}", unit=" images")
            ):
                picture, alpha = read_pair(layout, instance.file)
                kind = examine(picture, alpha, instance.category_id, classify)
                for which, chosen in kept.items():
                    told.setdefault(which, Counter())[kind] += chosen[place]
                if kind and not instance.reason:
                    pairs.append(framed_pair(picture, alpha, (0, 0, 0)))
                    captions.append(f"{samples.category_name(instance.category_id)}: {kind}\n{instance.file}")
    told["real digits"] = Counter(examine(*real, classify) for real in real_pictures())
    print(table(told))
    if args.sheet:
        sheet = contact_sheet(pairs, captions, f"kept, and called invalid: {len(pairs)}")
        files.write_bytes(args.sheet, encode_png(np.asarray(sheet)))


def table(told: Mapping[str, Counter[str]]) -> str:
    """A row for each group of pictures: how many, the share of invalid ones in percent, how many of each kind."""
    rows = [
        [
            which,
            kinds.total(),
            f"{100 * (1 - kinds[VALID] / kinds.total()):.1f} %",
            *(kinds[kind] for kind in KINDS),
        ]
        for which, kinds in told.items()
        if kinds.total()
    ]
    return tabulate(
        rows, ["", "pictures", "invalid", *KINDS], colalign=("left", *["right"] * (2 + len(KINDS)))
    )


if __name__ == "__main__":
    run_cli(main)
