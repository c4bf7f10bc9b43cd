"""Sheets of pictures: training images as the network sees them, and what a network finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import build_dataset, build_test_mapper
from detectron2_ext.data.mapper import PasteInfo
from detectron2_ext.data.view import FitFlip, Scene, SceneReader
from detectron2_ext.engine.train_loader import build_train_loader
from detectron2_ext.evaluation.evaluator import read_test_set
from detectron2_ext.modeling import build_model, load_weights
from detectron2_ext.paste.build import build_pool
from detectron2_ext.structures import Instances
from diSegmenter.report import contact_sheet
from exchange import files
from exchange.catalog import read_training_set, with_classes_of, with_extra_categories
from exchange.feedback import read_feedback, source_round
from exchange.layout import RunLayout
from exchange.pasted import Pasted
from exchange.run import round_iterations
from tools.outlines import PASTED, REAL, class_color, draw_objects


def training_sheet(cfg: CfgNode, layout: RunLayout, round_: int, num: int) -> tuple[Image.Image, Pasted]:
    """The first ``num`` training images of a round, as the network sees them, and which instances are in them."""
    dataset = DetectionDataset(*read_training_set(cfg))
    history = layout.feedback_history(source_round(round_, cfg.FEEDBACK.STALENESS))
    pool = build_pool(cfg, layout, round_, dataset)
    loader = build_train_loader(
        cfg,
        start_iteration=round_ * round_iterations(cfg),
        num_iterations=-(-num // cfg.SOLVER.IMS_PER_BATCH),
        dataset=dataset,
        pool=pool,
        feedback=read_feedback(history) if files.exists(history) else None,
    )
    items = [item for batch in loader for item in batch][:num]
    is_bgr = cfg.INPUT.FORMAT == "BGR"
    pictures, captions, pasted = [], [], Pasted([], [], [])
    for number, item in enumerate(items, start=1):
        names = [
            "" if info is None or info.pool_index < 0 else pool.instance(info.pool_index)
            for info in _pasted_as(item)
        ]
        pictures.append(_draw_training_image(item, dataset, is_bgr, names))
        captions.append(
            f"{number}: {item['width']} x {item['height']}, {len(item['paste_info'])} pasted, {_base_name(item)}"
        )
        for name, class_index in zip(names, item["instances"].gt_classes.tolist(), strict=True):
            if name:
                pasted.images.append(number)
                pasted.files.append(name)
                pasted.categories.append(int(dataset.category_ids[class_index]))
    title = f"{' + '.join(cfg.DATASETS.TRAIN)}, round {round_}: real objects blue, pasted objects orange"
    return contact_sheet(pictures, captions, title), pasted


def _pasted_as(item: dict[str, Any]) -> list[PasteInfo | None]:
    """For each object of a training image what was pasted there, None for a real one.

    Both lie from back to front; what others cover wholly is no object of the image any more.
    """
    instances, rest = item["instances"], iter(item["paste_info"])
    found: list[PasteInfo | None] = []
    for source, class_index, (x1, y1, x2, y2) in zip(
        instances.instance_source.tolist(),
        instances.gt_classes.tolist(),
        instances.gt_boxes.tolist(),
        strict=True,
    ):
        is_it = (
            info
            for info in rest
            if info.class_index == class_index
            and (info.box[0] <= x1 and info.box[1] <= y1 and x2 <= info.box[2] and y2 <= info.box[3])
        )
        found.append(next(is_it, None) if source else None)
    return found


def prediction_sheet(cfg: CfgNode, checkpoint: str, num: int, min_score: float) -> Image.Image:
    """``num`` images spread over the first test set: what is in them, and right of it what ``checkpoint`` finds."""
    name = cfg.DATASETS.TEST[0]
    dataset = build_dataset(cfg, name)
    test_set = with_extra_categories(cfg, read_test_set(cfg, name)[0])
    model = build_model(with_classes_of(cfg, test_set))
    load_weights(model, checkpoint, use_ema=True, classes=list(test_set.category_names.values()))
    model.eval()
    mapper = build_test_mapper(cfg, dataset)
    pictures, captions = [], []
    for index in np.linspace(0, len(dataset) - 1, num, dtype=int).tolist():
        item = mapper[index]
        if "image" not in item:
            continue
        with torch.inference_mode():
            found = model([item])[0]["instances"]
        found = found[found.scores >= min_score]
        truth = _read_whole(dataset, index)
        pictures.append(
            _side_by_side(_draw_truth(truth, dataset), _draw_predictions(truth.image, found, dataset))
        )
        captions.append(f"{len(truth.objects)} objects, {len(found)} found, {_base_name(item)}")
    title = f"{name}: left what is annotated, right what {Path(checkpoint).name} finds with scores from {min_score}"
    return contact_sheet(pictures, captions, title)


def _read_whole(dataset: DetectionDataset, index: int) -> Scene:
    """An image of the data set with its objects, in its own size."""
    record = dataset.record(index)
    whole = FitFlip((record.height, record.width), scale_range=(1.0, 1.0), flip_probability=0.0)
    return SceneReader(dataset, whole)(index, np.random.default_rng())


def _draw_truth(scene: Scene, dataset: DetectionDataset) -> Image.Image:
    objects = scene.instances()
    classes = objects.gt_classes.tolist()
    return draw_objects(
        scene.image,
        objects.gt_boxes.numpy(),
        objects.gt_masks.to_full().numpy(),
        [dataset.category_names[index] for index in classes],
        [class_color(index) for index in classes],
    )


def _draw_predictions(image: np.ndarray, found: Instances, dataset: DetectionDataset) -> Image.Image:
    classes = found.pred_classes.tolist()
    labels = [
        f"{dataset.category_names[index]} {score:.2f}"
        for index, score in zip(classes, found.scores.tolist(), strict=True)
    ]
    colors = [class_color(index) for index in classes]
    return draw_objects(image, found.pred_boxes.numpy(), found.pred_masks.numpy(), labels, colors)


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    pair = Image.new("RGB", (left.width + right.width + 4, max(left.height, right.height)), (255, 255, 255))
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 4, 0))
    return pair


def _base_name(item: dict[str, Any]) -> str:
    return Path(item["file_name"]).name


def _draw_training_image(
    item: dict[str, Any], dataset: DetectionDataset, is_bgr: bool, names: Sequence[str]
) -> Image.Image:
    """``names``: of the instances that were pasted, empty for other objects."""
    image = item["image"].flip(0) if is_bgr else item["image"]
    instances = item["instances"]
    return draw_objects(
        np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
        instances.gt_boxes.numpy(),
        instances.gt_masks.to_full().numpy(),
        [
            f"{dataset.category_names[index]} {Path(name).stem}".rstrip()
            for index, name in zip(instances.gt_classes.tolist(), names, strict=True)
        ],
        [PASTED if source else REAL for source in instances.instance_source.tolist()],
    )
