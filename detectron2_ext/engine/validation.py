"""Evaluation of a network on the data sets of the configuration."""

from __future__ import annotations

import logging
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import build_test_loader
from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.evaluation import Evaluation, build_truth, evaluate_model
from detectron2_ext.evaluation.report import as_json, format_table
from exchange import files
from exchange.annotations import AnnotationFile, read_annotations
from exchange.catalog import dataset_paths
from exchange.errors import UserError

_log = logging.getLogger(__name__)


def read_test_set(cfg: CfgNode, name: str) -> tuple[AnnotationFile, str]:
    """Annotations and image folder of a data set; raises UserError if its classes are not the network's."""
    annotation_file, image_root = dataset_paths(name, cfg)
    annotations = read_annotations(annotation_file)
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(annotations.categories) != expected:
        raise UserError(
            f"{annotation_file} has {len(annotations.categories)} categories, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {expected}: set it to the number of categories, or name another "
            "data set in DATASETS.TEST"
        )
    return annotations, image_root


def validate(
    cfg: CfgNode, model: nn.Module, name: str, folder: str, ranks: Ranks, **context: Any
) -> Evaluation | None:
    """Evaluates ``model`` on the data set ``name``; predictions and ``metrics.json`` go to ``folder/name``.

    ``context`` stands in front of the metrics. Returns the scores in the first process, None in the others.
    """
    annotations, image_root = read_test_set(cfg, name)
    dataset = DetectionDataset(annotations, image_root)
    loader = build_test_loader(cfg, dataset, rank=ranks.rank, world_size=ranks.world_size)
    target = files.join(folder, name)
    truth = build_truth(cfg, annotations)
    evaluation = evaluate_model(model, loader, truth, target, ranks, cfg.TEST.DETECTIONS_PER_IMAGE)
    if evaluation:
        files.write_json(
            files.join(target, "metrics.json"), as_json(evaluation, annotations, dataset=name, **context)
        )
        _log.info("scores on %s in percent:\n%s", name, format_table(evaluation))
    return evaluation
