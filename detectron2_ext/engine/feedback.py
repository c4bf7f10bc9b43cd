"""What a round tells the generator: per-class average precision, and how far each classifier row moved."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from detectron2_ext.engine.checkpoints import read_checkpoint
from detectron2_ext.evaluation import Evaluation
from exchange import files
from exchange.errors import UserError
from exchange.feedback import Feedback

_CLASSIFIER = re.compile(r"roi_heads\.box_predictor\.(\d+)\.cls_score\.weight")
_FIXED_ROWS = re.compile(r"roi_heads\.box_predictor\.\d+\.cls_score\.zs_weight")  # text features


def classifier_rows(weights: Mapping[str, Tensor], num_classes: int) -> Tensor:
    """Rows of the last cascade stage's classifier, float64 (C, D) on the CPU; row ``c`` is that of class index ``c``.

    The last row, the background's, is left out.
    """
    stages = {int(match[1]): name for name in weights if (match := _CLASSIFIER.fullmatch(name))}
    if not stages:
        raise UserError("the checkpoint is of another network: it has no roi_heads.box_predictor.*")
    rows = weights[stages[max(stages)]]
    if len(rows) != num_classes + 1:
        raise UserError(
            f"the classifier has {len(rows) - 1} classes and the validation set {num_classes}: "
            "MODEL.ROI_HEADS.NUM_CLASSES and DATASETS.TEST must agree"
        )
    return rows[:num_classes].double().cpu()


def drift(now: Tensor, before: Tensor) -> list[float]:
    """How far each class's row moved in a round: ``‖w_c(now) − w_c(before)‖₂``, for rows (C, D)."""
    moved: list[float] = torch.linalg.vector_norm(now.double() - before.double(), dim=1).tolist()
    return moved


def make_feedback(
    evaluation: Evaluation,
    *,
    round_: int,
    iteration: int,
    checkpoint: str,
    weights: Mapping[str, Tensor],
    before: str | None,
    dataset: str,
    category_ids: list[int],
) -> Feedback:
    """The feedback of a round.

    ``checkpoint``: path of the round's last checkpoint, ``weights``: those in it that were evaluated; ``before``:
    path of the checkpoint of the round before, None for the starting weights. Without learned rows there is no drift.
    ``category_ids``: of all classes of the network; those that the evaluation does not know, the last ones, have no AP.
    """
    unknown: list[float | None] = [None] * (len(category_ids) - len(evaluation.box_ap))
    moved: list[float | None] = [None] * len(category_ids)
    if before is not None and not any(map(_FIXED_ROWS.fullmatch, weights)):
        old = read_checkpoint(before)
        rows = (
            classifier_rows(each, len(category_ids)) for each in (weights, old.get("model_ema", old["model"]))
        )
        moved = list(drift(*rows))
    return Feedback(
        round=round_,
        iteration=iteration,
        checkpoint=checkpoint,
        checkpoint_sha256=files.sha256(checkpoint),
        dataset=dataset,
        categories=category_ids,
        box_ap=[*evaluation.box_ap, *unknown],
        mask_ap=[*evaluation.mask_ap, *unknown],
        drift=moved,
        mean_box_ap=evaluation.box["AP"],
        mean_mask_ap=evaluation.mask["AP"],
        ap_r=evaluation.mask.get("APr"),
        ap_c=evaluation.mask.get("APc"),
        ap_f=evaluation.mask.get("APf"),
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
