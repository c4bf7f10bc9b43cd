"""Detectron2's evaluators and this project's, about the same detections."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2", reason="Detectron2 is not installed: its evaluators were not compared")

from detectron2_ext.distributed import Ranks
from detectron2_ext.evaluation import evaluator
from detectron2_ext.structures import Instances
from detectron2_ext.with_detectron2 import training
from exchange.config import load_config
from tests.detectron2_ext.engine.small_run import SIDE, write_config

FALSE = 60  # detections of each class beside those of objects, between which they rank


class Detector(nn.Module):
    """Finds the objects of an annotation file, nearly where they are, the first of an image first and the rest last."""

    def __init__(self, annotations: list[dict]) -> None:
        super().__init__()
        self.annotations = annotations

    def find(self, image_id: int) -> tuple[Tensor, Tensor, Tensor]:
        objects = [each for each in self.annotations if each["image_id"] == image_id]
        rng = np.random.default_rng(image_id)
        boxes = [np.add(each["bbox"], rng.integers(0, 3, 4)).tolist() for each in objects]
        boxes += [[*rng.integers(0, SIDE - 9, 2).tolist(), 8, 8] for _ in range(3 * FALSE)]
        classes = [(2, 5, 9).index(each["category_id"]) for each in objects] + [0, 1, 2] * FALSE
        scores = [0.9, *[0.01] * (len(objects) - 1), *np.linspace(0.2, 0.8, 3 * FALSE)]
        x, y, width, height = torch.tensor(boxes).float().T
        corners = [x, y, (x + width).clamp(max=SIDE), (y + height).clamp(max=SIDE)]
        return torch.stack(corners, dim=1), torch.tensor(classes), torch.tensor(scores)

    def detect(self, batch: list[dict]) -> list[Instances]:
        found = []
        for entry in batch:
            boxes, classes, scores = self.find(entry["image_id"])
            fields = {"pred_boxes": boxes, "pred_classes": classes, "scores": scores}
            found.append(Instances((SIDE, SIDE), **fields, pred_masks=torch.ones(len(boxes), 28, 28)))
        return found

    def forward(self, batch: list[dict]) -> list[dict]:
        found = self.detect(batch)
        for of_image in found:
            of_image.pred_masks = torch.zeros(len(of_image), SIDE, SIDE, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(
                of_image.pred_masks, of_image.pred_boxes.long().tolist(), strict=True
            ):
                mask[y1:y2, x1:x2] = True
        return [{"instances": of_image} for of_image in found]


@pytest.mark.parametrize("benchmark", ["lvis", "coco"])
def test_scores_of_many_detections_agree_and_metrics_without_objects_are_null(
    benchmark: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    path = tmp_path / "small_val/annotations.json"
    content = json.loads(path.read_text())
    if benchmark == "coco":
        for image in content["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        for category in content["categories"]:
            del category["frequency"]
        content["annotations"] = [{**each, "iscrowd": 0} for each in content["annotations"]]
        path.write_text(json.dumps(content | {"info": {}}))
    cfg = load_config(str(config), ["TEST.DETECTIONS_PER_IMAGE", "300"])
    model, ranks = Detector(content["annotations"]), Ranks(0, 1, torch.device("cpu"))
    for module in (evaluator, training):
        module.validate(cfg, model, "small_val", str(tmp_path / module.__name__), ranks)
    assert not model._forward_hooks  # returns what it did before
    own, other = (
        json.loads((tmp_path / module.__name__ / "small_val/metrics.json").read_text())
        for module in (evaluator, training)
    )
    scores = other.pop("detectron2")
    assert own == other and any(of_class["taken_for"] for of_class in own["classes"])
    for ours, theirs in (("box", "bbox"), ("mask", "segm")):
        assert 10 < own[ours]["AP"] < 90
        for metric, value in own[ours].items():
            expected = -100.0 if value is None and benchmark == "lvis" else value
            assert scores[theirs][metric] == pytest.approx(expected, abs=1e-6), metric
