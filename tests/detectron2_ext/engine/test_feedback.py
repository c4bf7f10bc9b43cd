"""What a round tells the generator, from checkpoints made by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
import torch

from detectron2_ext.engine.feedback import classifier_rows, make_feedback
from detectron2_ext.evaluation import Evaluation
from exchange import files
from exchange.errors import UserError

_NAME = "roi_heads.box_predictor.{}.cls_score.weight"


def _weights(seed: int, num_classes: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {_NAME.format(stage): torch.randn(num_classes + 1, 5, generator=draw) for stage in (0, 2, 1)}


@pytest.mark.parametrize("averaged", [True, False])
def test_feedback_compares_the_weights_in_memory_with_the_evaluated_ones_of_the_round_before(
    averaged: bool, tmp_path: Path
) -> None:
    rest = {"optimizer": {}, "scheduler": {}, "scaler": {}, "iteration": 39}
    of_model, of_average, now = (_weights(seed, num_classes=4) for seed in (11, 1, 2))
    weights = {"model": of_model, "model_ema": of_average} if averaged else {"model": of_average}
    torch.save({**weights, **rest}, tmp_path / "before.pth")
    (tmp_path / "now.pth").write_bytes(b"is not read again, but for its digest")
    mask = {"AP": 8.0, "APr": 6.0, "APc": 7.0, "APf": None}
    evaluation = Evaluation(
        {"AP": 10.0, "APr": 1.0, "APc": 2.0, "APf": 3.0}, mask, [1.0, None, 2.0], [3.0, None, 4.0]
    )
    feedback = make_feedback(
        evaluation,
        round_=4,
        iteration=50,
        checkpoint=str(tmp_path / "now.pth"),
        weights=now,
        before=str(tmp_path / "before.pth"),
        dataset="val",
        category_ids=[2, 5, 9, 11],  # the last of which the data set does not know
    )
    last = _NAME.format(2)
    expected = (now[last].double() - of_average[last].double()).square().sum(dim=1).sqrt()[:4]
    assert feedback.drift == pytest.approx(expected.tolist(), rel=1e-12)
    assert (feedback.round, feedback.iteration, feedback.dataset) == (4, 50, "val")
    assert (feedback.checkpoint, feedback.categories) == (str(tmp_path / "now.pth"), [2, 5, 9, 11])
    assert feedback.checkpoint_sha256 == files.sha256(str(tmp_path / "now.pth"))
    assert (feedback.box_ap, feedback.mask_ap) == ([1.0, None, 2.0, None], [3.0, None, 4.0, None])
    assert (feedback.mean_box_ap, feedback.mean_mask_ap) == (10.0, 8.0)
    assert (feedback.ap_r, feedback.ap_c, feedback.ap_f) == (6.0, 7.0, None)
    assert datetime.strptime(feedback.time, "%Y-%m-%dT%H:%M:%S%z")


def test_starting_weights_have_no_drift_and_a_data_set_without_objects_no_ap(
    tmp_path: Path,
) -> None:
    (tmp_path / "now.pth").write_bytes(b"weights")
    feedback = make_feedback(
        Evaluation({"AP": None}, {"AP": None}, [None], [None]),
        round_=-1,
        iteration=0,
        checkpoint=str(tmp_path / "now.pth"),
        weights=_weights(1),
        before=None,
        dataset="val",
        category_ids=[2, 5],  # of which the data set knows one
    )
    assert (feedback.mean_box_ap, feedback.mean_mask_ap) == (None, None)
    assert feedback.drift == feedback.box_ap == feedback.mask_ap == [None, None]


def test_a_classifier_of_another_width_or_network_is_named() -> None:
    for num_classes in (2, 4):
        with pytest.raises(UserError, match=f"has 3 classes and the validation set {num_classes}"):
            classifier_rows(_weights(0), num_classes)
    with pytest.raises(UserError, match=r"no roi_heads\.box_predictor"):
        classifier_rows({"fc.weight": torch.zeros(2, 2)}, 1)
