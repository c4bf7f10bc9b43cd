"""Evaluation of instance segmentation by the rules of LVIS, COCO, Pascal VOC and Open Images."""

from detectron2_ext.evaluation.evaluator import build_truth, evaluate_model
from detectron2_ext.evaluation.scoring import Evaluation, Truth

__all__ = ["Evaluation", "Truth", "build_truth", "evaluate_model"]
