#!/usr/bin/env python3
"""Pictures to look at.

usage: tools/visualize.py data --config FILE [--num 16] [--round R] [--out FILE] [KEY VALUE ...]
       tools/visualize.py predictions --config FILE [--num 16] [--score 0.5] [--out FILE] [KEY VALUE ...]

data: training images as the network sees them, with boxes, masks and class names; real objects in blue, pasted
ones in orange. predictions: what the run's last checkpoint (or MODEL.WEIGHTS, if it is given here) finds in test
images, a colour for each class.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import build_dataset, build_test_mapper
from detectron2_ext.engine.round import run_checkpoints
from detectron2_ext.engine.train_loader import build_train_loader
from detectron2_ext.modeling import build_model, load_weights
from detectron2_ext.paste.build import build_pool
from detectron2_ext.structures import Instances
from diSegmenter.report import contact_sheet
from exchange import files
from exchange.catalog import read_training_set
from exchange.config import add_config_arguments, from_repository, load_config
from exchange.errors import UserError, run_cli
from exchange.feedback import read_feedback, source_round
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.run import round_iterations, run_layout
from tools.outlines import PASTED, REAL, class_color, draw_objects


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["data", "predictions"])
    parser.add_argument("--num", type=int, default=16, help="number of images")
    parser.add_argument("--round", type=int, help="whose pool to paste from (default: the newest)")
    parser.add_argument("--score", type=float, default=0.5, help="lowest score of an object to draw")
    parser.add_argument("--out", help="PNG file (default: pictures/ in the run folder)")
    add_config_arguments(parser)
    args = parser.parse_intermixed_args()
    if args.num < 1:
        raise UserError(f"--num is {args.num}: ask for at least one image")
    cfg = load_config(args.config, args.opts)
    layout = run_layout(cfg)
    if args.what == "data":
        round_ = max(layout.pool_rounds(), default=0) if args.round is None else args.round
        name, sheet = f"data_rd{round_:02}.png", training_sheet(cfg, layout, round_, args.num)
    else:
        checkpoint = _checkpoint(cfg, layout, given="MODEL.WEIGHTS" in args.opts[::2])
        name, sheet = "predictions.png", prediction_sheet(cfg, checkpoint, args.num, args.score)
    path = args.out or files.join(layout.pictures_dir, name)
    write_picture(path, sheet)
    print(path)


def training_sheet(cfg: CfgNode, layout: RunLayout, round_: int, num: int) -> Image.Image:
    """The first ``num`` training images of a round, as the network sees them."""
    dataset = DetectionDataset(*read_training_set(cfg))
    history = layout.feedback_history(source_round(round_, cfg.FEEDBACK.STALENESS))
    loader = build_train_loader(
        cfg,
        start_iteration=round_ * round_iterations(cfg),
        num_iterations=-(-num // cfg.SOLVER.IMS_PER_BATCH),
        dataset=dataset,
        pool=build_pool(cfg, layout, round_, dataset),
        feedback=read_feedback(history) if files.exists(history) else None,
    )
    items = [item for batch in loader for item in batch][:num]
    is_bgr = cfg.INPUT.FORMAT == "BGR"
    pictures = [_draw_training_image(item, dataset, is_bgr) for item in items]
    captions = [
        f"{item['width']} x {item['height']}, {len(item['paste_info'])} pasted, {_base_name(item)}"
        for item in items
    ]
    title = f"{' + '.join(cfg.DATASETS.TRAIN)}, round {round_}: real objects blue, pasted objects orange"
    return contact_sheet(pictures, captions, title)


def prediction_sheet(cfg: CfgNode, checkpoint: str, num: int, min_score: float) -> Image.Image:
    """What the network of ``checkpoint`` finds in ``num`` images spread over the first test set."""
    name = cfg.DATASETS.TEST[0]
    dataset = build_dataset(cfg, name)
    model = build_model(cfg)
    load_weights(model, checkpoint, use_ema=True)
    model.eval()
    mapper = build_test_mapper(cfg, dataset)
    items = [mapper[index] for index in np.linspace(0, len(dataset) - 1, num, dtype=int).tolist()]
    items = [item for item in items if "image" in item]
    pictures, captions = [], []
    for item in items:
        with torch.inference_mode():
            found = model([item])[0]["instances"]
        found = found[found.scores >= min_score]
        pictures.append(_draw_predictions(item, found, dataset, cfg.INPUT.FORMAT == "BGR"))
        captions.append(f"{len(found)} objects, {_base_name(item)}")
    title = f"{Path(checkpoint).name} on {name}, scores from {min_score}"
    return contact_sheet(pictures, captions, title)


def _checkpoint(cfg: CfgNode, layout: RunLayout, given: bool) -> str:
    """MODEL.WEIGHTS if ``given`` on the command line, else the run's last checkpoint if it has one."""
    last = None if given else run_checkpoints(cfg, layout).latest()
    if last is None and not cfg.MODEL.WEIGHTS:
        raise UserError(f"{layout.train_dir} has no checkpoint: train first, or give MODEL.WEIGHTS FILE")
    return last or from_repository(cfg.MODEL.WEIGHTS)


def _draw_predictions(
    item: dict[str, Any], found: Instances, dataset: DetectionDataset, is_bgr: bool
) -> Image.Image:
    image = (item["image"].flip(0) if is_bgr else item["image"]).permute(1, 2, 0).numpy()
    original = Image.fromarray(np.ascontiguousarray(image)).resize((item["width"], item["height"]))
    classes = found.pred_classes.tolist()
    labels = [
        f"{dataset.category_names[index]} {score:.2f}"
        for index, score in zip(classes, found.scores.tolist(), strict=True)
    ]
    return draw_objects(
        np.asarray(original),
        found.pred_boxes.numpy(),
        found.pred_masks.numpy(),
        labels,
        [class_color(index) for index in classes],
    )


def _base_name(item: dict[str, Any]) -> str:
    return Path(item["file_name"]).name


def _draw_training_image(item: dict[str, Any], dataset: DetectionDataset, is_bgr: bool) -> Image.Image:
    image = item["image"].flip(0) if is_bgr else item["image"]
    instances = item["instances"]
    return draw_objects(
        np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
        instances.gt_boxes.numpy(),
        instances.gt_masks.to_full().numpy(),
        [dataset.category_names[index] for index in instances.gt_classes.tolist()],
        [PASTED if source else REAL for source in instances.instance_source.tolist()],
    )


def write_picture(path: str, picture: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    files.write_bytes(path, encode_png(np.asarray(picture)))


if __name__ == "__main__":
    run_cli(main)
