"""Stage 2: brings the generated images of each round into the pool.

It follows stage 1 while that draws. With --refilter it judges finished rounds by another CLIP threshold, and by any
other bounds that are given (SEGMENTER.MAX_OBJECTS 1).
"""

import argparse
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fvcore.common.config import CfgNode

from diSegmenter.annotate import MaskCleaner
from diSegmenter.filter import InstanceFilter
from diSegmenter.finish_round import JudgedRound, finished_rounds, judge_again, judge_round, write_pool
from diSegmenter.pool.annotation_file import renew_lvis
from diSegmenter.pool.prune import prune_originals
from diSegmenter.report import write_pictures
from diSegmenter.segment_round import Listing, follow_round
from exchange import files
from exchange.annotations import AnnotationFile
from exchange.catalog import read_training_set, with_classes_of
from exchange.command_line import make_parser, quiet_model_libraries
from exchange.config import add_config_arguments, at_least, limits, load_config
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.logs import log_to_run
from exchange.pool_index import PoolInstance
from exchange.run import add_round_arguments, chosen_rounds, claim_run, open_run, run_layout
from exchange.seconds import Stopwatch
from exchange.shards import Shard, choose_gpu, choose_shard

_WRITES = ("pool", "pool/segmented", "pool/cutouts", "pool/index", "pool/annotations", "pictures")
# What may be another when a finished round is judged again.
_BOUNDS = [
    f"SEGMENTER.{name}"
    for name in ("CLIP_THRESHOLD", "CLIP_TOLERANCE", "SIMILARITY_THRESHOLD", "JUDGE_THRESHOLD", "AREA_SHARE")
    + ("MAX_OBJECTS", "DROP_TOUCHING_BORDER")
]
_log = logging.getLogger("segmentAndFilter")
RoundCutter = Callable[[int, Iterable[Listing]], list[PoolInstance]]


def main() -> None:
    args = build_parser().parse_intermixed_args()
    cfg = load_config(args.config, args.opts)
    _log.info("run folder: %s", run_layout(cfg).root)
    shard = choose_shard(args.share, args.num_shares, "--share", "--num-shares")
    rounds = chosen_rounds(args, cfg)
    dataset, image_folder = read_training_set(cfg)
    cfg = with_classes_of(cfg, dataset)
    layout = open_run(cfg, *_WRITES, may_differ=_BOUNDS if args.refilter is not None else ())
    process = f"segment_{shard.index}of{shard.count}"
    with only_one(layout, process):
        log_to_run(layout, process)
        if args.refilter is not None:
            refilter(cfg, layout, dataset, rounds, args.refilter)
        else:
            segmenter = functools.partial(build_segmenter, cfg, layout, dataset, image_folder, shard)
            cut_out_and_filter(cfg, layout, dataset, rounds, segmenter, args, Stopwatch(layout, process))


def cut_out_and_filter(
    cfg: CfgNode,
    layout: RunLayout,
    dataset: AnnotationFile,
    rounds: Sequence[int],
    segmenter: Callable[[int], RoundCutter],
    args: argparse.Namespace,
    watch: Stopwatch,
) -> None:
    """What is missing of ``rounds``, one after the other, each as soon as stage 1 lists its images."""
    instance_filter = build_filter(cfg, cfg.SEGMENTER.CLIP_THRESHOLD)
    finished = finished_rounds(layout, rounds)
    unfinished = [round_ for round_ in rounds if round_ not in finished]
    if not cfg.SEGMENTER.KEEP_RAW:
        for round_ in finished:
            prune_originals(layout, round_)  # the call that finished it may have been killed before that
    if not unfinished:
        _log.info("the rounds of %s are in its pool: nothing to do", layout.root)
        return
    segment = segmenter(choose_gpu(args.gpu))
    num_shards = 1 if args.div == -1 else args.div
    for round_ in unfinished:
        files.remove(layout.annotations_done(round_))  # lost something: it is not finished for anybody
        listed = follow_round(layout, round_, cfg.FEEDBACK.TIMEOUT, num_shards=num_shards)
        with watch.measure(round_, "cutting out"):
            waiting = functools.partial(watch.measure, round_, "waiting (stage 2)")
            cut_out = segment(round_, claimed(cfg, listed, waiting))
        with watch.measure(round_, "filtering"):
            judged = judge_round(layout, round_, cut_out, instance_filter)
            if judged is not None:
                finish(cfg, layout, judged, dataset)


def claimed(
    cfg: CfgNode, listed: Iterator[Listing], waiting: Callable[[], AbstractContextManager[None]]
) -> Iterator[Listing]:
    """``listed``, with the run folder claimed before the first image; for the next it waits within ``waiting()``."""
    while True:
        with waiting():
            listing = next(listed, None)
        if listing is None:
            return
        if listing[1]:
            claim_run(cfg)
        yield listing


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "--config configs/digits/MRCA_digits.yaml --num-rounds 1")
    add_config_arguments(parser)
    parser.add_argument("--gpu", type=int, help="number of the GPU (default: 0, or torchrun's local rank)")
    parser.add_argument(
        "--share",
        type=int,
        help="cut out this share of the images only, from 0 (default: torchrun's rank, or all)",
    )
    parser.add_argument("--num-shares", type=int, default=1, metavar="M", help="number of shares")
    parser.add_argument(
        "--div", type=int, help="shards of stage 1, -1 for one (default: as many as its manifests say)"
    )
    add_round_arguments(parser)
    parser.add_argument(
        "--refilter",
        type=float,
        metavar="T",
        help="apply CLIP threshold T to finished rounds, no model runs (default: cut out and filter new ones)",
    )
    return parser


def build_filter(cfg: CfgNode, clip_threshold: float) -> InstanceFilter:
    node = cfg.SEGMENTER
    if not 0 <= node.JUDGE_THRESHOLD <= 1:
        raise UserError(
            f"SEGMENTER.JUDGE_THRESHOLD is {node.JUDGE_THRESHOLD:g}: give a probability, from 0 to 1"
        )
    if not math.isfinite(clip_threshold):
        raise UserError(f"--refilter {clip_threshold}: give a finite number")
    return InstanceFilter(
        clip_threshold=clip_threshold,
        area_share=limits(cfg, "SEGMENTER.AREA_SHARE"),
        max_objects=node.MAX_OBJECTS,
        drop_touching_border=node.DROP_TOUCHING_BORDER,
        clip_tolerance=node.CLIP_TOLERANCE,
        similarity_threshold=node.SIMILARITY_THRESHOLD if node.SIMILARITY_MODEL else -1.0,
        judge_threshold=node.JUDGE_THRESHOLD if node.JUDGE else 0.0,
    )


def build_segmenter(
    cfg: CfgNode, layout: RunLayout, dataset: AnnotationFile, image_folder: str, shard: Shard, gpu: int
) -> RoundCutter:
    """The models and what drives them; imported here, since the rest of the script does without torch."""
    batch_size, workers, input_size = (
        at_least(1, cfg, f"SEGMENTER.{name}") for name in ("BATCH_SIZE", "WORKERS", "INPUT_SIZE")
    )
    import torch

    from diSegmenter.build_similarity import build_similarity
    from diSegmenter.clip_score import load_clip_scorer
    from diSegmenter.cut_out import BestOf, InTurn, OneModel
    from diSegmenter.foreground import load_foreground
    from diSegmenter.judge import load_judge, questions_about
    from diSegmenter.onnx_network import OnnxReading
    from diSegmenter.segment_round import Measure, RoundSegmenter

    quiet_model_libraries()
    device = torch.device(f"cuda:{gpu}" if torch.cuda.is_available() else "cpu")
    node, names = cfg.SEGMENTER, dataset.category_names
    try:
        prompts = {category: node.CLIP_PROMPT.format(name) for category, name in names.items()}
    except (LookupError, ValueError, AttributeError) as error:
        raise UserError(
            f"SEGMENTER.CLIP_PROMPT is {node.CLIP_PROMPT!r}, which does not work: put {{}} where the category's name "
            "is to stand"
        ) from error
    clean = MaskCleaner(node.ALPHA_FLOOR, node.LARGEST_COMPONENT)
    scorer = InTurn(load_clip_scorer(node.CLIP_MODEL, node.CLIP_REVISION, prompts, device))
    reading = OnnxReading(node.ONNX_MEAN, node.ONNX_STD, node.ONNX_OUTPUT, node.ONNX_RESCALE)
    models = []
    for choice, name, revision in chosen_foregrounds(cfg):
        loaded = load_foreground(choice, name, revision, node.TRUST_REMOTE_CODE, input_size, device, reading)
        models.append(OneModel("alpha" if choice == "alpha" else name, InTurn(loaded), clean, scorer))
    measures: dict[str, Measure] = {}
    if node.SIMILARITY_MODEL:
        claim_run(cfg)  # since the pool gets the features of real objects
        measures["similarity"] = InTurn(build_similarity(cfg, layout, dataset, image_folder, device))
    if node.JUDGE:
        questions = questions_about(node.JUDGE_PROMPT, names)
        measures["judge"] = InTurn(load_judge(node.JUDGE, node.JUDGE_REVISION, questions, device))
    cutter = models[0] if len(models) == 1 else BestOf(models)
    return RoundSegmenter(layout, cutter, batch_size, workers, shard, measures)


def chosen_foregrounds(cfg: CfgNode) -> list[tuple[str, str, str]]:
    """Kind, name and revision of each foreground model; one name or revision stands for all."""
    kinds = cfg.SEGMENTER.FOREGROUND
    columns = [kinds]
    for key in ("FOREGROUND_MODEL", "FOREGROUND_REVISION"):
        values = cfg.SEGMENTER[key]
        columns.append(values * len(kinds) if len(values) == 1 else values)
        if len(columns[-1]) != len(kinds) or not kinds:
            raise UserError(
                f"SEGMENTER.FOREGROUND names {len(kinds)} models and SEGMENTER.{key} has {len(values)} entries: "
                "give one for each"
            )
    return list(zip(*columns, strict=True))


def finish(cfg: CfgNode, layout: RunLayout, judged: JudgedRound, dataset: AnnotationFile) -> None:
    """Writes what shows a round, then its pool, whose marker says that nothing is left to do."""
    pool_rounds = [judged.round] if cfg.SEGMENTER.LATEST_ROUND_ONLY else range(judged.round + 1)
    write_pictures(layout, judged, dataset.category_names)
    write_pool(layout, judged, dataset.categories, pool_rounds, cfg.SEGMENTER.ANNOTATION_FILE_LIMIT)
    for later in layout.pool_rounds():
        if later > judged.round:  # finished before, with this round as it was
            renew_lvis(layout, later, dataset.categories)
    if not cfg.SEGMENTER.KEEP_RAW:
        prune_originals(layout, judged.round)


def refilter(
    cfg: CfgNode, layout: RunLayout, dataset: AnnotationFile, rounds: range, threshold: float
) -> None:
    """Judges every finished round again by the scores on record."""
    instance_filter = build_filter(cfg, threshold)
    finished = [round_ for round_ in rounds if files.exists(layout.annotations_done(round_))]
    if not finished:
        raise UserError(f"no round in {layout.root} is finished: run mrca segment without --refilter first")
    for round_ in finished:
        finish(cfg, layout, judge_again(layout, round_, instance_filter), dataset)


if __name__ == "__main__":
    run_cli(main)
