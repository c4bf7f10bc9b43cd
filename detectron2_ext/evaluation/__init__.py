"""Evaluation of instance segmentation by the rules of LVIS and COCO."""

from detectron2_ext.evaluation.inference import evaluate_model
from detectron2_ext.evaluation.scoring import Evaluation, score_predictions

__all__ = ["Evaluation", "evaluate_model", "score_predictions"]
