"""Does guidance raise the segmenter's uncertainty, and at what price? Pairs of images with equal seeds, guided and not.

The feedback file (default: of the starting weights, in the run folder) names the segmenter. The price is what CLIP
says of the whole images: 100 x cosine with SEGMENTER.CLIP_PROMPT, as in the filter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.catalog import read_training_set, with_classes_of
from exchange.command_line import make_parser
from exchange.config import add_config_arguments, load_config
from exchange.errors import UserError, run_cli
from exchange.feedback import read_feedback
from exchange.run import run_layout
from generator.plan import PlannedImage, plan_round, share_among

if TYPE_CHECKING:
    from diSegmenter.clip_score import ClipScorer


def compare(unguided: np.ndarray, guided: np.ndarray) -> dict[str, float]:
    """Means, the mean difference within pairs with its standard error, and the share of pairs that rose."""
    difference = guided - unguided
    return {
        "unguided": float(unguided.mean()),
        "guided": float(guided.mean()),
        "difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
        "share_of_pairs_that_rose": float((difference > 0).mean()),
    }


def clip_scores(
    scorer: ClipScorer, pixels: np.ndarray, plan: list[PlannedImage], batch_size: int
) -> np.ndarray:
    """Score of each image, (N,), with the text of its category; ``pixels``: uint8 (N, H, W, 3)."""
    opaque = np.full(pixels.shape[1:3], 255, dtype=np.uint8)
    scores = []
    for start in range(0, len(plan), batch_size):
        batch = pixels[start : start + batch_size]
        category_ids = [image.category_id for image in plan[start : start + batch_size]]
        scores.append(scorer(list(batch), [opaque] * len(batch), category_ids)[:, 0])
    return np.concatenate(scores)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, "--config configs/digits/MRCA_digits.yaml --pairs 60 OUTPUT_DIR runs/quickstart"
    )
    parser.add_argument(
        "--feedback",
        metavar="FILE",
        help="whose segmenter guides (default: feedback/initial.json of the run)",
    )
    parser.add_argument("--pairs", type=int, default=120, metavar="N", help="pairs of images to draw")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON, too (default: nowhere)")
    add_config_arguments(parser, "configs/digits/MRCA_digits.yaml")
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    if args.pairs < 2:
        raise UserError(f"--pairs is {args.pairs}: at least two are needed to compare")

    import torch  # only now, with what needs it: seconds that --help should not take

    from diSegmenter.clip_score import load_clip_scorer
    from generator.build import (
        build_guidance,
        build_prompt_book,
        build_sampler,
        chosen_models,
        load_classifier,
    )
    from generator.pipelines import choose_device

    cfg = load_config(args.config, args.opts)
    device = choose_device(0)
    annotations = read_training_set(cfg)[0]
    cfg = with_classes_of(cfg, annotations)
    num_classes = len(annotations.categories)
    per_class = np.full(num_classes, -(-args.pairs // num_classes))
    book = build_prompt_book(cfg, annotations.category_names.values())
    plan = plan_round(annotations.categories, per_class, book, cfg.SEED, 1)[: args.pairs]
    plan = share_among(plan, chosen_models(cfg))
    feedback = read_feedback(args.feedback or run_layout(cfg).feedback_history(-1))
    guidance = build_guidance(cfg, load_classifier(cfg, feedback, device))
    sampler = build_sampler(cfg, device, limit=cfg.GENERATOR.BATCH_SIZE)
    sampler.prepare(plan)
    classes = torch.tensor([image.class_index for image in plan])
    prompts = {
        category: cfg.SEGMENTER.CLIP_PROMPT.format(name)
        for category, name in annotations.category_names.items()
    }
    scorer = load_clip_scorer(cfg.SEGMENTER.CLIP_MODEL, cfg.SEGMENTER.CLIP_REVISION, prompts, device)
    uncertainty, scores = [], []
    for steering in (None, guidance):
        drawn = sampler.draw(plan, cfg.GENERATOR.BATCH_SIZE, steering)
        pixels = np.stack([image.pixels for image in drawn])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            uncertainty.append(guidance.uncertainty(images.to(device), classes.to(device)).cpu().numpy())
        scores.append(clip_scores(scorer, pixels, plan, cfg.SEGMENTER.BATCH_SIZE))
    effect = {cfg.GENERATOR.CRITERION: compare(*uncertainty), "clip_score": compare(*scores)}
    rows = [[name, *measured.values()] for name, measured in effect.items()]
    headers = ["", *(name.replace("_", " ") for name in effect["clip_score"])]
    print(tabulate(rows, headers, floatfmt=".3f"))
    if args.out:
        generator = cfg.GENERATOR
        settings = {"mode": generator.GUIDANCE_MODE, "scale": generator.GUIDANCE_SCALE, "pairs": len(plan)}
        files.write_json(args.out, settings | effect)


if __name__ == "__main__":
    run_cli(main)
