"""Stage 1: draws the images of one or more rounds, guided by the segmenter's feedback.

Several GPUs: one process each, with --gpu N --div N --num-div M.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from its own folder

import numpy as np
from fvcore.common.config import CfgNode

from exchange import files
from exchange.annotations import AnnotationFile
from exchange.catalog import read_training_set, with_classes_of
from exchange.command_line import make_parser, quiet_model_libraries
from exchange.config import add_config_arguments, at_least, below_working_directory, load_config
from exchange.errors import UserError, run_cli
from exchange.feedback import Feedback, read_feedback, source_round
from exchange.layout import RunLayout
from exchange.logs import log_to_run
from exchange.run import add_round_arguments, chosen_rounds, claim_run, open_run, run_layout
from exchange.seconds import Stopwatch
from exchange.shards import choose_gpu, choose_shard
from exchange.waiting import wait_for
from generator.allocation import AllocationRule, FloatArray, allocate, as_text, save_report, table_rows
from generator.plan import PlannedImage, plan_round, share_among

if TYPE_CHECKING:
    import torch

    from generator.guidance import Guidance
    from generator.production import Draw
    from generator.sampling import Samplers

_log = logging.getLogger("generator")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "--config configs/digits/MRCA_digits.yaml --dry-run GENERATOR.PER_CLASS 4")
    parser.add_argument("--gpu", type=int, help="number of the GPU (default: 0, or torchrun's local rank)")
    parser.add_argument("--div", type=int, help="draw this shard only, from 0; -1: everything (the default)")
    parser.add_argument("--num-div", "--num_div", type=int, default=3, metavar="M", help="number of shards")
    add_round_arguments(parser)
    parser.add_argument(
        "--balanced", type=int, choices=(0, 1), help="1: every class alike (default: GENERATOR.BALANCED)"
    )
    parser.add_argument(
        "--val-acc", "--val_acc", type=int, choices=(0, 1), help="0: allocate without AP (default: 1)"
    )
    parser.add_argument(
        "--bsz",
        type=int,
        help="images at once, if memory allows fewer than GENERATOR.BATCH_SIZE (default: that many)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show and save the allocation as far as it is known, draw nothing",
    )
    add_config_arguments(parser)
    same = {"dest": "config", "default": argparse.SUPPRESS, "metavar": "FILE"}
    parser.add_argument("--cfg-path", "--cfg_path", help="the release's name of --config", **same)
    for name in ("ckpt", "output"):
        help_ = "the run folder, with checkpoints and images in it (default: OUTPUT_DIR)"
        flags, more = (f"--{name}-dir", f"--{name}_dir"), {"dest": "run_folders", "metavar": "FOLDER"}
        parser.add_argument(*flags, action="append", help=help_, **more)
    return parser


def parse_arguments() -> argparse.Namespace:
    args = build_parser().parse_intermixed_args()
    folders = {below_working_directory(folder) for folder in args.run_folders or []}
    if len(folders) > 1:
        raise UserError(
            "--ckpt-dir and --output-dir name two folders: a run has its checkpoints and its images in one, give that"
        )
    if args.bsz is not None and args.bsz < 0:
        raise UserError(f"--bsz {args.bsz}: give a number of images, or 0 for GENERATOR.BATCH_SIZE")
    args.opts += [text for folder in folders for text in ("OUTPUT_DIR", folder)]
    return args


def main() -> None:
    args = parse_arguments()
    cfg = load_config(args.config, args.opts)
    _log.info("run folder: %s", run_layout(cfg).root)
    shard = choose_shard(args.div, args.num_div, "--div", "--num-div")

    import torch  # only now, with what needs it: seconds that --help should not take

    from generator.build import build_guidance, build_prompt_book, build_sampler, chosen_models
    from generator.pipelines import choose_device
    from generator.production import produce
    from generator.twins import choose_twins, draw_twins

    quiet_model_libraries()
    device = torch.device("cpu") if args.dry_run else choose_device(choose_gpu(args.gpu))
    rule, models = allocation_rule(args, cfg), chosen_models(cfg)
    build_guidance(cfg, torch.nn.Identity())  # so that a wrong setting is told before the first round
    annotations = read_training_set(cfg)[0]
    book = build_prompt_book(cfg, annotations.category_names.values())
    cfg = with_classes_of(cfg, annotations)
    counts = annotations.instance_counts()
    layout = open_run(cfg, "pool/raw", "pool/manifests", "pictures", trains=False)
    process = f"generate_{shard.index}of{shard.count}"
    watch = Stopwatch(layout, process)
    if not args.dry_run:
        log_to_run(layout, process)
    batch_size, num_twins = at_least(1, cfg, "GENERATOR.BATCH_SIZE"), at_least(0, cfg, "GENERATOR.TWINS")
    sampler = build_sampler(cfg, device, limit=min(args.bsz or batch_size, batch_size))

    for round_ in chosen_rounds(args, cfg):
        if files.exists(layout.annotations_done(round_)) and not args.dry_run:
            _log.info("round %d is in the pool, which may have dropped its images: nothing to draw", round_)
            continue
        if args.dry_run and not can_be_allocated(layout, cfg, round_):
            sys.stdout.write(f"round {round_}: depends on feedback that is not there yet\n")
            continue
        unguided = args.dry_run and round_ < cfg.FEEDBACK.FROM_ROUND
        feedback = None if unguided else wait_for_feedback(layout, cfg, round_, annotations, watch)
        drift, ap = allocation_factors(feedback, round_, cfg.FEEDBACK.FROM_ROUND)
        allocation = allocate(rule, annotations.category_ids, counts, drift, ap)
        rows = table_rows(annotations.category_names, counts, drift, ap, allocation)
        if shard.index == 0:
            save_report(files.join(layout.pictures_dir, f"allocation_rd{round_:02}"), rows)
        if args.dry_run:
            sys.stdout.write(f"round {round_}: {allocation.images.sum()} images\n{as_text(rows)}")
            continue
        plan = plan_round(annotations.categories, allocation.images, book, cfg.SEED, round_)
        plan = share_among(plan, models)
        guide = feedback if cfg.GENERATOR.GUIDANCE_SCALE > 0 else None
        guidance = functools.cache(functools.partial(load_guidance, cfg, guide, device))
        twins = choose_twins(plan, num_twins) if guide is not None and shard.index == 0 else []
        begin = functools.partial(prepare, cfg, sampler, guidance, twins)
        made = produce(layout, round_, plan, shard, batch_size, guide is not None, begin)
        _log.info("round %d, shard %s: all %d images are there", round_, shard, len(made.instances))
        if twins:
            draw_twins(layout.twins(round_), twins, functools.partial(prepare_twins, sampler, guidance))


def can_be_allocated(layout: RunLayout, cfg: CfgNode, round_: int) -> bool:
    """Whether the images of a round can be divided among the classes by what is known."""
    source = source_round(round_, cfg.FEEDBACK.STALENESS)
    return round_ < cfg.FEEDBACK.FROM_ROUND or files.exists(layout.feedback_history(source))


def allocation_rule(args: argparse.Namespace, cfg: CfgNode) -> AllocationRule:
    """The YAML's rule, as the reference's options change it."""
    from generator.build import build_allocation_rule

    rule = build_allocation_rule(cfg)
    if args.balanced is not None:
        rule = dataclasses.replace(rule, balanced=bool(args.balanced))
    return dataclasses.replace(rule, ap_mode="off") if args.val_acc == 0 else rule


def wait_for_feedback(
    layout: RunLayout, cfg: CfgNode, round_: int, annotations: AnnotationFile, watch: Stopwatch
) -> Feedback | None:
    """The feedback that a round is made from, as soon as it is there; None for round 0, which has none."""
    if round_ == 0:
        return None
    source = source_round(round_, cfg.FEEDBACK.STALENESS)
    path = layout.feedback_history(source)
    if source < 0:
        what, command = "the feedback of the starting weights", "mrca feedback"
    else:
        what, command = f"the feedback of round {source}", "mrca train"
    if not files.exists(path):
        with watch.measure(round_, "waiting (stage 1)"):
            wait_for(path, f"{what}, from which round {round_} is drawn", command, cfg.FEEDBACK.TIMEOUT)
    feedback = read_feedback(path)
    if feedback.categories != annotations.category_ids.tolist():
        raise UserError(
            f"{path} is about {len(feedback.categories)} categories of {feedback.dataset}, which are not "
            f"those of {annotations.path}: evaluate with the same DATASETS as in this configuration"
        )
    return feedback


def allocation_factors(
    feedback: Feedback | None, round_: int, from_round: int
) -> tuple[FloatArray | None, FloatArray | None]:
    """Drift and mask AP per class, NaN where unknown; None before the round from which they count."""
    if feedback is None or round_ < from_round:
        return None, None
    return np.array(feedback.drift, dtype=np.float64), np.array(feedback.mask_ap, dtype=np.float64)


def load_guidance(cfg: CfgNode, feedback: Feedback | None, device: torch.device) -> Guidance | None:
    """Guidance by the network of the feedback, if there is one."""
    from generator.build import build_guidance, load_classifier, load_gradient_decoder

    if feedback is None:
        return None
    classifier = load_classifier(cfg, feedback, device)
    return build_guidance(cfg, classifier, load_gradient_decoder(cfg, device))


def prepare(
    cfg: CfgNode,
    sampler: Samplers,
    guidance: Callable[[], Guidance | None],
    twins: Sequence[PlannedImage],
    images: Sequence[PlannedImage],
) -> Draw:
    """Loads what these images are drawn with, ``guidance`` among it, and their ``twins`` later on.

    What can fail has not failed then: the run folder is that of these settings.
    """
    sampler.prepare([*images, *twins])
    steering = guidance()
    claim_run(cfg, trains=False)
    return functools.partial(sampler.sample, guidance=steering)


def prepare_twins(
    sampler: Samplers, guidance: Callable[[], Guidance], images: Sequence[PlannedImage]
) -> Draw:
    """The same for twins: guidance that looks and does not shift, so that it tells its criterion of them, too."""
    sampler.prepare(images)
    return functools.partial(sampler.sample, guidance=dataclasses.replace(guidance(), scale=0.0))


if __name__ == "__main__":
    run_cli(main)
