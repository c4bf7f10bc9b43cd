"""Sheets of pictures: training images as the network sees them, and what a network finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import build_dataset, build_test_mapper
from detectron2_ext.engine.train_loader import build_train_loader
from detectron2_ext.evaluation.evaluator import read_test_set
from detectron2_ext.modeling import build_model, load_weights
from detectron2_ext.paste.build import build_pool
from detectron2_ext.structures import Instances
from diSegmenter.report import contact_sheet
from exchange import files
from exchange.catalog import read_training_set, with_classes_of
from exchange.feedback import read_feedback, source_round
from exchange.layout import RunLayout
from exchange.run import round_iterations
from tools.outlines import PASTED, REAL, class_color, draw_objects


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
    model = build_model(with_classes_of(cfg, read_test_set(cfg, name)[0]))
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
