"""Running a network over a validation set: files, several processes, and what is printed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from torch import nn

from detectron2_ext.distributed import Ranks
from detectron2_ext.evaluation import Evaluation, evaluate_model, evaluator
from detectron2_ext.evaluation.confusions import Confusions
from detectron2_ext.evaluation.evaluator import as_json, explain_nothing, format_classes, format_table
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import CocoTruth
from detectron2_ext.structures import Instances
from exchange import files
from exchange.annotations import AnnotationFile
from exchange.config import load_config
from exchange.errors import UserError
from tests.detectron2_ext.engine.small_run import write_config
from tests.detectron2_ext.evaluation.worlds import World, random_world


class _Oracle(nn.Module):
    """Gives for each image what it was told to."""

    def __init__(self, predictions: dict[int, Instances]) -> None:
        super().__init__()
        self._predictions = predictions

    def detect(self, batch: list[dict[str, Any]]) -> list[Instances]:
        assert not self.training and torch.is_inference_mode_enabled()
        return [self._predictions[record["image_id"]] for record in batch]


class _Loader:
    def __init__(self, image_ids: list[int]) -> None:
        self._batches = [image_ids[i : i + 2] for i in range(0, len(image_ids), 2)]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return ([{"image_id": image_id} for image_id in batch] for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _evaluate(
    world: World, predictions: dict[int, Instances], folder: Path, world_size: int, limit: int = 300
) -> Evaluation | None:
    """Processes of a group played in turn, the first one last: nobody has to wait where they meet."""
    model = _Oracle(predictions).train()
    evaluation = None
    met: list[bool] = []

    def meet(ranks: Ranks) -> None:
        met.append((folder / f"part{ranks.rank}.json").exists())

    for rank in reversed(range(world_size)):
        ranks = Ranks(rank, world_size, torch.device("cpu"))
        loader = _Loader(list(predictions)[rank::world_size])
        with patch.object(Ranks, "barrier", meet):
            evaluation = evaluate_model(model, loader, CocoTruth(world.file), str(folder), ranks, limit)
        assert (evaluation is None) == (rank > 0)
        assert model.training
    assert met == [True] * (world_size - 1) + [False]  # once each; the first one has no part of its own
    return evaluation


def _direct(world: World, predictions: dict[int, Instances]) -> Evaluation:
    parts = [Predictions.from_instances(image_id, found, 300) for image_id, found in predictions.items()]
    found, confusions = Predictions.concatenate(parts), Confusions(world.file)
    confusions.add_all(found)
    return dataclasses.replace(CocoTruth(world.file).score(found), confusions=confusions.by_class())


@pytest.mark.parametrize("world_size", [1, 3])
def test_scores_and_files_do_not_depend_on_the_number_of_processes(world_size: int, tmp_path: Path) -> None:
    world, predictions = random_world(0, lvis=True)
    for suffix in ("json", "npz", "npy"):  # of an evaluation by twelve that was killed
        (tmp_path / f"part11.{suffix}").touch()
    assert _evaluate(world, predictions, tmp_path, world_size) == _direct(world, predictions)
    assert [path.name for path in tmp_path.iterdir()] == ["lvis_instances_results.json"]
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    expected = [
        json.loads(record)
        for image_id, found in predictions.items()
        for record in Predictions.from_instances(image_id, found, 300).to_json(world.category_ids)
    ]
    by_image = sorted(written, key=lambda record: (record["image_id"], -record["score"]))
    assert by_image == sorted(expected, key=lambda record: (record["image_id"], -record["score"]))


def test_what_the_benchmark_does_not_judge_is_not_kept_for_the_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, predictions = random_world(0, lvis=True)
    monkeypatch.setattr(CocoTruth, "score", score := Mock(return_value=_direct(world, predictions)))
    _evaluate(world, predictions, tmp_path, world_size=1)
    (kept,) = score.call_args.args
    assert CocoTruth(world.file).counted(kept).all()
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert 0 < len(kept) < len(written)


def test_an_image_s_id_has_64_bits() -> None:
    _, predictions = random_world(0, lvis=False)
    found = Predictions.from_instances(1 << 40, next(iter(predictions.values())), 300)
    assert set(found.image_ids.tolist()) == {1 << 40}


def test_each_process_predicts_its_part_and_as_many_objects_of_an_image_as_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "build_test_loader", load := Mock())
    monkeypatch.setattr(evaluator, "evaluate_model", evaluate := Mock(return_value=None))
    cfg, ranks = load_config(str(write_config(tmp_path))), Ranks(1, 3, torch.device("cpu"))
    assert evaluator.validate(cfg, "network", "small_val", "out", ranks) is None
    assert load.call_args.kwargs == {"rank": 1, "world_size": 3}
    network, loader, _, *rest = evaluate.call_args.args
    assert (network, loader, *rest) == ("network", load.return_value, "out/small_val", ranks, 20)


def test_a_set_of_another_number_of_categories_than_the_network_s_is_not_tested_on(tmp_path: Path) -> None:
    number = "MODEL.ROI_HEADS.NUM_CLASSES"
    for of_network in (0, 3):  # 0: as many as the training set has
        cfg = load_config(str(write_config(tmp_path)), [number, str(of_network)])
        assert len(evaluator.read_test_set(cfg, "small_val")[0].categories) == 3
    with pytest.raises(
        UserError, match=rf"annotations\.json has 3 categories, but {number}, or .* is 4: the two"
    ):
        evaluator.read_test_set(load_config(str(write_config(tmp_path)), [number, "4"]), "small_val")


def test_one_process_writes_its_predictions_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, predictions = random_world(0, lvis=True)
    written, writer = [], files.atomic_writer

    def watched(path: str, durable: bool = True) -> Any:
        written.append(Path(path).name)
        return writer(path, durable)

    monkeypatch.setattr(files, "atomic_writer", watched)
    _evaluate(world, predictions, tmp_path, 1)
    assert [name for name in written if name.endswith(".json")] == ["lvis_instances_results.json"]


def test_only_the_best_objects_of_an_image_are_written_and_scored(tmp_path: Path) -> None:
    world, predictions = random_world(0, lvis=True)
    evaluation = _evaluate(world, predictions, tmp_path, 1, limit=3)
    best = {
        i: found[found.scores.argsort(descending=True, stable=True)[:3]] for i, found in predictions.items()
    }
    assert evaluation == _direct(world, best) != _direct(world, predictions)
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert [record["score"] for record in written] == torch.cat([b.scores for b in best.values()]).tolist()


def test_a_data_set_that_lacks_a_frequency_is_scored_by_cocos_rules(tmp_path: Path) -> None:
    world, predictions = random_world(1, lvis=True, crowds=True)
    del world.categories[0]["frequency"]
    evaluation = _evaluate(world, predictions, tmp_path, 1)
    assert evaluation == _direct(world, predictions)
    assert "APr" not in evaluation.mask
    assert [path.name for path in tmp_path.iterdir()] == ["coco_instances_results.json"]


@pytest.mark.parametrize("place", [0, -1])
def test_what_goes_wrong_with_the_first_masks_or_the_last_ends_the_evaluation(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, predictions = random_world(0, lvis=True)
    add, bad = evaluator._Records.add, list(predictions)[place]

    def fails(self: Any, image_ids: list[int], found: Any) -> None:
        if bad in image_ids:
            raise OSError(28, "No space left on device")
        add(self, image_ids, found)

    monkeypatch.setattr(evaluator._Records, "add", fails)
    with pytest.raises(OSError, match="No space left"):
        _evaluate(world, predictions, tmp_path, 1)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("first_is_empty", [True, False])
def test_predictions_of_many_processes_are_one_list_wherever_there_are_some(
    first_is_empty: bool, tmp_path: Path
) -> None:
    world, predictions = random_world(0, lvis=True)
    predictions = dict(list(predictions.items())[:8])
    for place, image_id in enumerate(predictions):
        if place % 4 == (0 if first_is_empty else 2):
            predictions[image_id] = predictions[image_id][:0]
    _evaluate(world, predictions, tmp_path, 4)
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert len(written) == sum(map(len, predictions.values()))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_network_that_finds_nothing_writes_an_empty_list(world_size: int, tmp_path: Path) -> None:
    world, predictions = random_world(2, lvis=True)
    nothing = {image_id: found[:0] for image_id, found in predictions.items()}
    evaluation = _evaluate(world, nothing, tmp_path, world_size)
    assert evaluation == _direct(world, nothing) and evaluation.mask["AP"] == 0.0
    counts = np.bincount(world.file.object_classes[~world.file.crowd], minlength=len(world.categories))
    assert list(evaluation.confusions) == [{None: count} if count else {} for count in counts.tolist()]
    assert json.loads((tmp_path / "lvis_instances_results.json").read_text()) == []


def test_the_table_lines_up_and_shows_a_dash_where_there_is_no_score() -> None:
    box = {"AP": 31.415, "AP50": 100.0, "APr": None}
    mask = {"AP": 2.7, "AP50": 0.0, "APr": 12.0}
    assert format_table(Evaluation(box, mask, [], [])).splitlines() == [
        "         AP   AP50    APr",
        "box   31.41 100.00      -",
        "mask   2.70   0.00  12.00",
    ]


def test_the_classes_line_up_and_are_in_the_order_of_their_ids() -> None:
    categories = [{"id": 1203, "name": "zebra"}, {"id": 7, "name": "a pet cat"}]
    file = AnnotationFile.of_records("file.json", images=[], annotations=[], categories=categories)
    assert format_classes(Evaluation({}, {}, [100.0, None], [None, 7.126]), file).splitlines() == [
        "  id     box  mask  class",
        "   7  100.00     -  a pet cat",
        "1203       -  7.13  zebra",
    ]


def test_that_no_mask_was_found_or_could_be_is_explained_whatever_is_said_of_boxes() -> None:
    for box, mask, said in ((5.0, 0.0, "was found"), (0.0, 5.0, None), (None, None, "can be scored")):
        why = explain_nothing(Evaluation({"AP": box}, {"AP": mask}, [], []))
        assert (why and f"nothing {said}" in why) if said else why is None


def test_the_json_has_every_class_with_its_name() -> None:
    world, predictions = random_world(3, lvis=True)
    evaluation = _direct(world, predictions)
    content = json.loads(json.dumps(as_json(evaluation, world.file, checkpoint="model.pth"), allow_nan=False))
    assert content["checkpoint"] == "model.pth"
    assert [c["id"] for c in content["classes"]] == world.category_ids.tolist()
    assert (content["box"], content["mask"]) == (evaluation.box, evaluation.mask)
    assert evaluation.box != evaluation.mask
    assert [c["box_ap"] for c in content["classes"]] == evaluation.box_ap
    assert [c["mask_ap"] for c in content["classes"]] == evaluation.mask_ap
    ids = world.category_ids.tolist()
    for of_class, taken_for in zip(content["classes"], evaluation.confusions, strict=True):
        expected = [[None if index is None else ids[index], n] for index, n in taken_for.items()]
        assert of_class["taken_for"] == expected
