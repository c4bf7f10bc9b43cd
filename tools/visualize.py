#!/usr/bin/env python3
"""Pictures to look at.

usage: tools/visualize.py data --config FILE [--num 16] [--round R] [--out FILE] [KEY VALUE ...]

`data` writes a sheet of training images as the network sees them: boxes, masks and class names, real objects
in blue and pasted ones in orange.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import (
    build_dataset,
    build_pool,
    build_train_loader,
    training_set_name,
)
from exchange import files
from exchange.config import add_config_arguments, load_config
from exchange.errors import UserError, run_cli
from exchange.feedback import read_feedback
from exchange.layout import RunLayout
from exchange.run import run_layout
from tools.drawing import PASTED, REAL, contact_sheet, draw_objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["data"])
    parser.add_argument("--num", type=int, default=16, help="number of images")
    parser.add_argument("--round", type=int, help="whose pool to paste from (default: the newest)")
    parser.add_argument("--out", help="PNG file (default: pictures/ in the run folder)")
    add_config_arguments(parser)
    args = parser.parse_intermixed_args()
    cfg = load_config(args.config, args.opts)
    layout = run_layout(cfg)
    round_ = newest_pool(layout) if args.round is None else args.round
    path = args.out or files.join(layout.pictures_dir, f"data_rd{round_:02}.png")
    write_picture(path, training_sheet(cfg, layout, round_, args.num))
    print(path)


def newest_pool(layout: RunLayout) -> int:
    """The last round whose pool is complete; 0 if none is."""
    round_ = 0
    while files.exists(layout.annotations_done(round_ + 1)):
        round_ += 1
    return round_


def training_sheet(cfg: CfgNode, layout: RunLayout, round_: int, num: int) -> Image.Image:
    """The first ``num`` training images of a round, as the network sees them."""
    if num < 1:
        raise UserError(f"--num is {num}: ask for at least one image")
    dataset = build_dataset(cfg, training_set_name(cfg))
    history = layout.feedback_history(round_ - 1)
    loader = build_train_loader(
        cfg,
        start_iteration=round_ * cfg.SOLVER.ROUND_ITERS,
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
    title = f"{training_set_name(cfg)}, round {round_}: real objects blue, pasted objects orange"
    return contact_sheet(pictures, captions, title)


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
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    files.write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
    run_cli(main)
