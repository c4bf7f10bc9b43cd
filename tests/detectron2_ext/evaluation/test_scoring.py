"""The scores are those of the benchmarks' own packages, on data made to be awkward."""

from __future__ import annotations

import copy
import io
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2_ext.evaluation import scoring
from detectron2_ext.evaluation.pascal import VOC, PascalTruth
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import CocoTruth, Evaluation, Truth
from detectron2_ext.structures import Instances
from exchange.annotations import AnnotationFile
from exchange.errors import UserError
from tests.detectron2_ext.evaluation.worlds import World, random_world


def _all(predictions: dict[int, Any], limit: int = 300) -> Predictions:
    return Predictions.concatenate(
        [Predictions.from_instances(image_id, found, limit) for image_id, found in predictions.items()]
    )


def _score(world: World, predictions: dict[int, Any], limit: int = 300) -> Evaluation:
    return CocoTruth(world.file).score(_all(predictions, limit))


def _records(world: World, predictions: dict[int, Any]) -> list[dict[str, Any]]:
    return [json.loads(record) for record in _all(predictions).to_json(world.category_ids)]


def _content(world: World) -> dict[str, Any]:
    return copy.deepcopy(
        {"images": world.images, "annotations": world.annotations, "categories": world.categories}
    )


def _assert_equal(ours: float | None, theirs: float) -> None:
    assert (-1.0 if ours is None else ours / 100) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_lvis_scores_are_those_of_the_lvis_package(
    seed: int, iou_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 was written for an older NumPy
    from lvis import LVIS, LVISEval, LVISResults

    world, predictions = random_world(seed, lvis=True, crowds=seed >= 4)
    (tmp_path / "world.json").write_text(json.dumps(_content(world)))
    truth = LVIS(str(tmp_path / "world.json"))
    records = _records(world, predictions)
    if iou_type == "segm":  # with a box beside the mask the package would take areas from the box
        for record in records:
            del record["bbox"]
    reference = LVISEval(truth, LVISResults(truth, records), iou_type)
    reference.run()

    evaluation = _score(world, predictions)
    summary = evaluation.box if iou_type == "bbox" else evaluation.mask
    assert set(summary) == {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}
    for name, value in summary.items():
        _assert_equal(value, reference.results[name])
    per_class = evaluation.box_ap if iou_type == "bbox" else evaluation.mask_ap
    for index, value in enumerate(per_class):
        of_class = reference.eval["precision"][:, :, index, 0]
        _assert_equal(value, of_class[of_class > -1].mean() if (of_class > -1).any() else -1.0)
    assert per_class[-2:] == [None, None]
    assert 5 < summary["AP"] < 95


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_coco_scores_are_those_of_pycocotools(seed: int, iou_type: str) -> None:
    world, predictions = random_world(seed, lvis=False, crowds=True)
    truth = COCO()
    truth.dataset = _content(world) | {"info": {}}
    truth.createIndex()
    records = _records(world, predictions)
    if iou_type == "segm":
        for record in records:
            del record["bbox"]
    reference = COCOeval(truth, truth.loadRes(records), iou_type)
    reference.evaluate()
    reference.accumulate()
    reference.summarize()

    evaluation = _score(world, predictions)
    summary = evaluation.box if iou_type == "bbox" else evaluation.mask
    assert list(summary) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    for value, theirs in zip(summary.values(), reference.stats[:6], strict=True):
        _assert_equal(value, theirs)


@pytest.mark.parametrize(("lvis", "limit"), [(False, 100), (True, 300)])
def test_coco_looks_at_the_best_100_objects_of_an_image_and_lvis_at_300(lvis: bool, limit: int) -> None:
    corners = torch.tensor([[0.0, 0, 4, 4]]).repeat(limit + 1, 1)
    square = [[12, 12, 16, 12, 16, 16, 12, 16]]
    annotation = {"id": 1, "image_id": 1, "category_id": 2, "area": 16, "segmentation": square}
    frequency = {"frequency": "r"} if lvis else {}
    world = World(
        [{"id": 1, "height": 20, "width": 20}],
        [annotation | {"bbox": [12, 12, 4, 4]}],
        [{"id": 2, "name": "square", **frequency}],
    )
    for rank, expected in ((limit, 100 / limit), (limit + 1, 0.0)):
        boxes = corners.clone()
        boxes[rank - 1] += 12
        found = Instances(
            (20, 20),
            pred_boxes=boxes,
            scores=torch.full((limit + 1,), 0.5),  # of equal ones the network's first
            pred_classes=torch.zeros(limit + 1, dtype=torch.int64),
            pred_masks=torch.ones(limit + 1, 2, 2),
        )
        evaluation = _score(world, {1: found}, limit + 1)
        assert evaluation.box_ap == evaluation.mask_ap == [pytest.approx(expected)]


def test_predictions_that_lvis_cannot_judge_change_nothing() -> None:
    world, predictions = random_world(1, lvis=True, num_images=6, num_classes=12)
    truth = CocoTruth(world.file)
    everything = _all(predictions)
    judged = truth.counted(everything)
    pairs = {(image["id"], category) for image in world.images for category in image["neg_category_ids"]}
    pairs |= {(a["image_id"], a["category_id"]) for a in world.annotations if a["area"] > 0}
    found = zip(everything.image_ids, world.category_ids[everything.class_indices], strict=True)
    assert judged.tolist() == [pair in pairs for pair in found]
    assert 0 < judged.sum() < len(everything)
    assert truth.score(everything.select(judged)) == truth.score(everything)
    for image in world.images:
        image["neg_category_ids"].append(0)  # is no category of the data set
    assert (CocoTruth(world.file).counted(everything) == judged).all()
    truth.judge_only([], [])
    assert not truth.counted(everything).any()


def test_the_order_in_which_images_were_seen_does_not_matter() -> None:
    world, predictions = random_world(2, lvis=True)
    backwards = dict(reversed(predictions.items()))
    assert _score(world, predictions) == _score(world, backwards)


@pytest.mark.parametrize("kind", [CocoTruth, partial(PascalTruth, rules=VOC)])
def test_classes_scored_by_two_processes_have_the_same_scores(
    kind: Callable[[AnnotationFile], Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, predictions = random_world(4, lvis=True)
    found = _all(predictions)
    alone, random_numbers = kind(world.file).score(found, 0), torch.get_rng_state()
    assert kind(world.file).score(found, 2) == alone
    assert torch.equal(torch.get_rng_state(), random_numbers)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("not in this process")

    truth, here = kind(world.file), os.getpid()
    match = truth.precision
    monkeypatch.setattr(truth, "precision", lambda *a: refuse() if os.getpid() == here else match(*a))
    monkeypatch.setattr(scoring, "_A_PROCESS", len(found) // 3)  # so there is work for three
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert truth.score(found) == alone


def test_a_process_that_dies_while_it_scores_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    world, predictions = random_world(4, lvis=True)
    truth = CocoTruth(world.file)
    monkeypatch.setattr(truth, "precision", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"a process that scores died .* leave it fewer cores"):
        truth.score(_all(predictions), 1)


def test_a_network_that_finds_nothing_scores_zero_and_classes_without_objects_have_no_score() -> None:
    world, predictions = random_world(3, lvis=True)
    nothing = {image_id: found[:0] for image_id, found in predictions.items()}
    evaluation = _score(world, nothing)
    present = {annotation["category_id"] for annotation in world.annotations}
    expected = [0.0 if category["id"] in present else None for category in world.categories]
    assert evaluation.mask_ap == expected
    assert evaluation.box["AP"] == 0.0


@pytest.mark.parametrize("truth", [CocoTruth, partial(PascalTruth, rules=VOC)])
def test_an_annotation_without_an_area_is_named(truth: Callable[[AnnotationFile], Any]) -> None:
    world, _ = random_world(3, lvis=True)
    del world.annotations[1]["area"]
    with pytest.raises(UserError, match="annotation 2 has no 'area'"):
        truth(world.file)


def test_predictions_with_pickled_objects_are_refused() -> None:
    with_code = {"count_lengths": np.array([1]), "joined_counts": np.array([print], object)}
    np.savez(buffer := io.BytesIO(), **with_code, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Predictions.from_bytes(buffer.getvalue())


def test_predictions_survive_the_way_through_bytes_and_json_boxes_to_five_decimals_of_a_pixel() -> None:
    world, predictions = random_world(4, lvis=True)
    before = Predictions.concatenate([_all(predictions), Predictions.concatenate([])])
    before.scores[:2] = np.float32([1 / 3, 1e-7])
    for some in (before.select(np.zeros(0, np.int64)), before):
        written = some.to_json(world.category_ids)
        read = Predictions.from_json([json.loads(record) for record in written], world.category_ids)
        assert read.to_json(world.category_ids) == written
        assert Predictions.from_bytes(some.to_bytes()).to_json(world.category_ids) == written
        assert len(read.select(np.zeros(len(read), bool))) == 0
    assert read.scores.tolist() != [] and not any(" " in record for record in written)
    far = before.boxes[:, :2] + before.boxes[:, 2:]  # the network's own corners again: sides are not rounded
    np.testing.assert_array_equal(far, far.astype(np.float32))
    np.testing.assert_array_equal(read.scores.astype(np.float32), before.scores.astype(np.float32))
    np.testing.assert_allclose(read.boxes, before.boxes, rtol=0, atol=0.0000051)
    assert max(len(str(value)) for value in read.boxes.ravel().tolist()) <= 10
    assert read.counts.tolist() == before.counts.tolist()


def test_as_many_processes_score_as_there_are_cores_to_use_and_none_where_they_share_no_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 4, 7}, raising=False)
    assert scoring._cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert scoring._cores() == 0
