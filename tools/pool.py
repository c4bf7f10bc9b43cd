"""Instance pools: bring foreign ones in, copy, check, count, measure, rank and slim them.

RUN is a run folder (or its URL); one that does not exist yet is made by import and merge. The categories are
those of --annotations, else the pool's own.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from diSegmenter.finish_round import read_filter, recorded_round, write_verdicts
from diSegmenter.pool.add import import_round
from diSegmenter.pool.drop import drop
from diSegmenter.pool.foreign import read_coco, read_folders, read_xpaste
from diSegmenter.pool.move import export_annotations, export_coco, export_folders, merge, pack
from diSegmenter.pool.prune import prune_dropped, prune_duplicates, prune_originals
from diSegmenter.pool.quality import NEAR, PoolQuality
from diSegmenter.pool.verify import verify
from diSegmenter.report import write_pictures
from exchange import files
from exchange.annotations import read_annotations
from exchange.command_line import add_command, add_device_argument, make_parser
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout
from exchange.pool_rank import KINDS


def main() -> None:
    args = build_parser().parse_args()
    layout = RunLayout(args.run.rstrip("/"))
    if args.command not in ("import", "merge") and not layout.pool_rounds():
        raise UserError(
            f"{layout.root} holds no pool: there is no {layout.pool_index(0)} or later index in it"
        )
    COMMANDS[args.command].run(layout, args)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "stats runs/quickstart --per-class")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="with --help: says more"
    )
    for name, (_, what, example, add_arguments) in COMMANDS.items():
        command = add_command(commands, name, what, example)
        command.add_argument("run", metavar="RUN", help="run folder, or its URL")
        command.add_argument(
            "--annotations",
            metavar="FILE",
            help="LVIS or COCO file with the categories (default: the pool's own)",
        )
        add_arguments(command)
    return parser


def categories_of(layout: RunLayout, annotations: str | None) -> list[dict[str, Any]]:
    """Category records of ``annotations``, else the pool's own: of its newest annotation file where it is older than
    the file that holds them now.
    """
    if annotations:
        return read_annotations(annotations).categories
    listed = map(layout.annotations, reversed(layout.pool_rounds()))
    for path in (layout.pool_categories(), *listed):
        if files.exists(path):
            return read_annotations(path).categories
    raise UserError(f"{layout.root} does not say which categories there are: give --annotations FILE")


def add_import_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="JSON file, or folder of folders")
    forms = ("xpaste", "folders", "coco")
    command.add_argument("--from", dest="format", choices=forms, required=True, help="form of SOURCE")
    command.add_argument(
        "--root",
        default="",
        metavar="FOLDER",
        help="where relative paths in SOURCE start (default: the folder that SOURCE is in)",
    )


def import_pool(layout: RunLayout, args: argparse.Namespace) -> None:
    categories = categories_of(layout, args.annotations)
    ids = {category["name"]: category["id"] for category in categories}
    root = args.root or str(Path(args.source).parent)
    if args.format == "xpaste":
        foreign = read_xpaste(args.source, root, [category["id"] for category in categories])
    elif args.format == "folders":
        foreign = read_folders(args.source, ids)
    else:
        foreign = read_coco(args.source, root, ids)
    done = import_round(layout, foreign, categories, f"{args.format}:{args.source}")
    there = f", there already {done.present}" if done.present else ""
    print(f"imported {done.added} instances into {layout.root}, left out {len(done.left_out)}{there}")
    for sentence in done.left_out:
        print(f"  {sentence}")


def add_export_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", metavar="OUT", help="folder to write to")
    command.add_argument(
        "--to",
        dest="format",
        choices=("folders", "coco", "annotations"),
        required=True,
        help="form of OUT; annotations: the file alone, in LVIS format, without copying images",
    )


def export_pool(layout: RunLayout, args: argparse.Namespace) -> None:
    categories = categories_of(layout, args.annotations)
    if args.format == "coco":
        export_coco(layout, categories, args.out)
    elif args.format == "annotations":
        export_annotations(layout, categories, args.out)
    else:
        export_folders(layout, {category["id"]: category["name"] for category in categories}, args.out)
    print(f"exported to {args.out}")


def add_merge_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("others", metavar="OTHER_RUN", nargs="+", help="run folders to copy from")


def merge_pools(layout: RunLayout, args: argparse.Namespace) -> None:
    others = [RunLayout(path.rstrip("/")) for path in args.others]
    for other in others:  # all of them before the first is copied
        if other.root == layout.root or not other.pool_rounds():
            raise UserError(f"{other.root} holds no other pool: give the run folders to copy from")
    for other, categories in [(other, categories_of(other, args.annotations)) for other in others]:
        count = merge(layout, other, categories)
        print(f"copied {count} instances of {other.root} into {layout.root}")


def verify_pool(layout: RunLayout, args: argparse.Namespace) -> None:
    ids = {category["id"] for category in categories_of(layout, args.annotations)}
    problems = 0
    for problem in verify(layout, ids):
        print(problem)
        problems += 1
    if problems:
        raise UserError(f"{layout.root} has {problems} problems: each line above says what to do")
    print(f"{layout.root}: nothing is wrong")


def add_measure_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        metavar="FILE",
        help="YAML that names the encoder: SEGMENTER.SIMILARITY_MODEL, or where that is empty CLIP_MODEL "
        "(default: the run's settings)",
    )
    add_device_argument(command)


def measure_pool(layout: RunLayout, args: argparse.Namespace) -> None:
    from tools.pool_measure import measure_features  # only now: seconds that --help should not take

    for round_, now, kept in measure_features(layout, args.config, args.device):
        print(f"round {round_}: measured {now} of {kept} instances")


def add_stats_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--per-class", action="store_true", help="the same of each class, too")
    command.add_argument(
        "--csv", metavar="FILE", help="write numbers of each class and round there (default: nowhere)"
    )
    command.add_argument(
        "--near",
        type=float,
        default=NEAR,
        metavar="C",
        help="cosine from which on an instance repeats an earlier one of its class",
    )


def show_stats(layout: RunLayout, args: argparse.Namespace) -> None:
    if not 0 < args.near <= 1:
        raise UserError(f"--near {args.near}: a cosine above 0, up to 1")
    from tools import pool_stats  # only now, with tabulate, which --help does without

    quality = PoolQuality(layout, layout.pool_rounds(), args.near)
    print(pool_stats.as_text(pool_stats.by_round(quality)))
    if quality.unmeasured is not None:
        print(
            f"diversity is not known from round {quality.unmeasured} on: mrca pool measure {layout.root} measures it"
        )
    if args.per_class or args.csv:
        names = {category["id"]: category["name"] for category in categories_of(layout, args.annotations)}
        if args.per_class:
            print(pool_stats.as_text(pool_stats.by_class(quality, names)))
        if args.csv:
            files.write_bytes(args.csv, pool_stats.as_csv(quality, names).encode())


def add_prune_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--originals", action="store_true", help="remove generated images and masks")
    command.add_argument(
        "--dropped",
        action="store_true",
        help="remove cut-outs of dropped instances, not out of tar files",
    )
    command.add_argument("--duplicates", action="store_true", help="drop instances that equal an earlier one")


def prune_pool(layout: RunLayout, args: argparse.Namespace) -> None:
    if not (args.originals or args.dropped or args.duplicates):
        raise UserError("prune takes at least one of --originals, --dropped, --duplicates")
    if args.duplicates:
        print(f"dropped {prune_duplicates(layout, categories_of(layout, args.annotations))} duplicates")
    for round_ in layout.pool_rounds():
        if not files.exists(layout.annotations_done(round_)):
            continue
        if args.originals:
            print(f"round {round_}: removed {prune_originals(layout, round_)} images and masks")
        if args.dropped:
            print(f"round {round_}: removed {prune_dropped(layout, round_)} cut-outs")


def add_drop_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "names", metavar="NAME", nargs="*", help="instances, as the report of a round names them"
    )
    for option, dest, what in (
        ("--class", "classes", "all of these class ids"),
        ("--round", "rounds", "all of these rounds; with --class, of these classes alone"),
    ):
        letter = option[2].upper()
        command.add_argument(option, dest=dest, type=int, nargs="+", default=[], metavar=letter, help=what)


def drop_instances(layout: RunLayout, args: argparse.Namespace) -> None:
    if not (args.names or args.classes or args.rounds):
        raise UserError("drop takes names of instances, --class or --round")
    categories = categories_of(layout, args.annotations)
    dropped = drop(layout, args.names, args.classes, args.rounds, categories)
    names = {category["id"]: category["name"] for category in categories}
    for round_, count in dropped.items():
        if judged_by := read_filter(layout, round_):
            judged = recorded_round(layout, round_, judged_by)
            write_verdicts(layout, judged)
            write_pictures(layout, judged, names)
        print(f"round {round_}: dropped {count} instances")


def add_rank_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--by",
        choices=KINDS,
        required=True,
        help="gradient: BSGAL's score; entropy: a segmenter's uncertainty; clip: of cut-out and name; similarity: to "
        "real objects",
    )
    command.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="network of gradient and entropy, one of a run or exported (default: the last of RUN)",
    )
    command.add_argument(
        "--config",
        metavar="FILE",
        help="YAML with SEGMENTER.SIMILARITY_MODEL, for instances without a similarity (default: they stay unknown)",
    )
    command.add_argument(
        "--images", type=int, default=8, metavar="N", help="training images of a class that gradient looks at"
    )
    add_device_argument(command)


def rank_pool(layout: RunLayout, args: argparse.Namespace) -> None:
    if args.images < 1:
        raise UserError(f"--images {args.images}: gradient looks at one image of a class at least")
    from tools.pool_rank import build_measure, rank  # only now: seconds that --help should not take

    measure = build_measure(layout, args.by, args.config, args.checkpoint, args.images, args.device)
    for round_, values in rank(layout, args.by, measure):
        if values is None:
            print(f"round {round_}: was ranked before")
            continue
        known = values[~np.isnan(values)]
        shown = " ".join(f"{q:.3f}" for q in np.quantile(known, [0.05, 0.5, 0.95])) if len(known) else "none"
        print(f"round {round_}: ranked {len(known)} of {len(values)} instances (5 %, median, 95 %: {shown})")


def pack_pool(layout: RunLayout, args: argparse.Namespace) -> None:
    for round_ in layout.pool_rounds():
        print(f"round {round_}: packed {pack(layout, round_)} cut-outs")


class Command(NamedTuple):
    """What it runs, what that does, arguments that work, and what adds its own ones to RUN and --annotations."""

    run: Callable[[RunLayout, argparse.Namespace], None]
    what: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda command: None


COMMANDS = {
    "import": Command(
        import_pool,
        "bring a pool of X-Paste's, a folder per class, or a COCO file in; called again, what is new of it",
        "runs/foreign --from folders cutouts --annotations train.json",
        add_import_arguments,
    ),
    "export": Command(
        export_pool,
        "write the pool for other programs",
        "runs/quickstart exported --to coco",
        add_export_arguments,
    ),
    "merge": Command(
        merge_pools,
        "copy the pools of other runs, what is not here yet",
        "runs/both runs/one runs/other",
        add_merge_arguments,
    ),
    "drop": Command(
        drop_instances,
        "take instances out by hand, for good",
        "runs/quickstart 00_0001_0002.png --class 7 --round 1",
        add_drop_arguments,
    ),
    "verify": Command(verify_pool, "check that every file of the pool is whole", "runs/quickstart"),
    "measure": Command(
        measure_pool,
        "encode the cut-outs that are new, for what stats tells of diversity",
        "runs/quickstart",
        add_measure_arguments,
    ),
    "stats": Command(
        show_stats,
        "what was made, kept and dropped, how it scores, and how different it is",
        "runs/quickstart --per-class",
        add_stats_arguments,
    ),
    "rank": Command(
        rank_pool,
        "measure how good each instance is, for INPUT.INST_POOL_WEIGHT and INPUT.INST_POOL_RANK",
        "runs/quickstart --by gradient",
        add_rank_arguments,
    ),
    "prune": Command(
        prune_pool,
        "remove what training does not read",
        "runs/quickstart --originals --dropped",
        add_prune_arguments,
    ),
    "pack": Command(pack_pool, "put the cut-outs of a round into one tar file", "runs/quickstart"),
}

if __name__ == "__main__":
    run_cli(main)
