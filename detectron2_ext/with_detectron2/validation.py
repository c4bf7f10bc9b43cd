"""Validation by Detectron2's evaluators."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator, inference_on_dataset
from fvcore.common.config import CfgNode
from torch import nn

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import build_test_loader
from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.validation import read_test_set
from detectron2_ext.evaluation import Evaluation
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.report import as_json
from detectron2_ext.evaluation.scoring import GroundTruth
from detectron2_ext.with_detectron2.conversion import convert_outputs
from detectron2_ext.with_detectron2.registration import describe_dataset, register_custom_datasets
from exchange import files
from exchange.errors import UserError

_log = logging.getLogger(__name__)


def validate(
    cfg: CfgNode, model: nn.Module, name: str, folder: str, ranks: Ranks, **context: Any
) -> Evaluation | None:
    """As :func:`detectron2_ext.engine.validation.validate`, with Detectron2's evaluator in charge.

    Its scores stand in ``metrics.json`` as ``detectron2``. It has none for each class of LVIS, which the generator
    needs; those returned here are computed from the predictions that it wrote.
    """
    annotations, image_root = read_test_set(cfg, name)
    register_custom_datasets(cfg)
    describe_dataset(name, annotations)
    _require_same_file(name, annotations.path)
    dataset = DetectionDataset(annotations, image_root)
    loader = build_test_loader(cfg, dataset, rank=ranks.rank, world_size=ranks.world_size)
    if cfg.TEST.EVALUATOR != "auto":
        raise UserError(
            "TEST.EVALUATOR: --engine detectron2 evaluates by the rules of LVIS or COCO, set it to auto"
        )
    truth = GroundTruth(annotations)
    target = files.join(folder, name)
    hook = model.register_forward_hook(convert_outputs)
    try:
        scores = inference_on_dataset(model, loader, _build_evaluator(truth, name, target))
    finally:
        hook.remove()
    if not ranks.is_first:
        return None
    _log.info("Detectron2's scores on %s: %s", name, scores)
    written = files.read_json(files.join(target, f"{truth.kind}_instances_results.json"))
    evaluation = truth.score(Predictions.from_json(written, truth.category_ids))
    report = as_json(evaluation, annotations, dataset=name, **context) | {"detectron2": scores}
    files.write_json(files.join(target, "metrics.json"), report)
    return evaluation


def _build_evaluator(truth: GroundTruth, name: str, folder: str) -> DatasetEvaluator:
    if not truth.federated:
        return COCOEvaluator(name, output_dir=folder, max_dets_per_image=truth.max_detections)
    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]  # lvis 0.5.3 was written for an older NumPy
    return LVISEvaluator(name, output_dir=folder, max_dets_per_image=truth.max_detections)


def _require_same_file(name: str, annotation_file: str) -> None:
    known = MetadataCatalog.get(name).json_file
    if os.path.realpath(known) != os.path.realpath(annotation_file):
        raise UserError(
            f"Detectron2 takes the annotations of {name} from {known}, this project from {annotation_file}: set "
            "DETECTRON2_DATASETS to the folder of the data sets"
        )
