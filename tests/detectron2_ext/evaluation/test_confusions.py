"""What the objects of each class are taken for: counted object by object, whatever the benchmark judges."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from detectron2_ext.evaluation.confusions import Confusions
from detectron2_ext.evaluation.predictions import Predictions
from exchange.annotations import AnnotationFile
from tests.detectron2_ext.evaluation.worlds import random_world

HERE, BESIDE = [10.0, 10.0, 20.0, 20.0], [60.0, 60.0, 20.0, 20.0]


def truth_of(*objects: tuple[int, list[float], dict[str, int]]) -> AnnotationFile:
    """One image, 7, with objects of the categories 1, 5 and 9: category id, XYWH box, further fields."""
    annotations = [
        {"id": n, "image_id": 7, "category_id": c, "bbox": box, "area": 400.0, "segmentation": [], **fields}
        for n, (c, box, fields) in enumerate(objects, start=1)
    ]
    categories = [{"id": c, "name": str(c)} for c in (1, 5, 9)]
    images = [{"id": 7, "height": 100, "width": 100}]
    return AnnotationFile.of_records(
        "truth.json", images=images, annotations=annotations, categories=categories
    )


def found(*objects: tuple[int, list[float], float]) -> Predictions:
    """Predictions in image 7: class index, XYWH box, score."""
    return Predictions(
        image_ids=np.full(len(objects), 7),
        class_indices=np.array([class_index for class_index, _, _ in objects], dtype=np.int64),
        scores=np.array([score for _, _, score in objects]),
        boxes=np.array([box for _, box, _ in objects], dtype=np.float64).reshape(-1, 4),
        sizes=np.full((len(objects), 2), 100, dtype=np.int32),
        counts=np.full(len(objects), b"", dtype=np.object_),
    )


def counted(truth: AnnotationFile, predictions: Predictions) -> list[dict[int | None, int]]:
    confusions = Confusions(truth)
    confusions.add(7, predictions)
    return [dict(of_class) for of_class in confusions.by_class()]


def test_an_object_is_taken_for_the_most_confident_class_at_its_place() -> None:
    truth = truth_of((1, HERE, {}))
    assert counted(truth, found((0, HERE, 0.3), (2, HERE, 0.6), (1, BESIDE, 0.9))) == [{2: 1}, {}, {}]
    assert counted(truth, found((0, HERE, 0.7), (2, HERE, 0.6))) == [{0: 1}, {}, {}]


def test_an_object_without_a_prediction_at_its_place_is_taken_for_nothing() -> None:
    truth = truth_of((1, HERE, {}))
    half = [10.0, 10.0, 20.0, 10.0]  # an IoU of just 0.5
    assert counted(truth, found((0, half, 0.3))) == [{0: 1}, {}, {}]
    assert counted(truth, found((0, [10.0, 10.0, 20.0, 9.9], 0.3))) == [{None: 1}, {}, {}]
    assert counted(truth, found()) == [{None: 1}, {}, {}]


def test_two_objects_at_one_place_are_not_each_other_s_confusion() -> None:
    truth = truth_of((1, HERE, {}), (5, HERE, {}), (5, BESIDE, {}))
    assert counted(truth, found((1, HERE, 0.9), (0, HERE, 0.2), (0, BESIDE, 0.1))) == [
        {0: 1},
        {0: 1, 1: 1},
        {},
    ]


def test_groups_and_difficult_objects_are_not_counted() -> None:
    truth = truth_of((1, HERE, {"iscrowd": 1}), (5, BESIDE, {"difficult": 1}), (9, BESIDE, {}))
    assert counted(truth, found((2, BESIDE, 0.5))) == [{}, {}, {2: 1}]


@pytest.mark.parametrize("lvis", [True, False])
def test_all_images_at_once_or_divided_among_processes_is_what_object_by_object_gives(lvis: bool) -> None:
    world, predictions = random_world(5, lvis=lvis, num_images=30)
    parts = {i: Predictions.from_instances(i, found, 300) for i, found in predictions.items()}
    truth, every = world.file, Predictions.concatenate(list(parts.values()))
    expected = [Counter[int | None]() for _ in world.categories]
    ids = world.category_ids.tolist()
    for annotation in world.annotations:
        place = parts[annotation["image_id"]]
        of_image = [a for a in world.annotations if a["image_id"] == annotation["image_id"]]
        own, best, taken = ids.index(annotation["category_id"]), -1.0, None
        for k in range(len(place)):
            label = int(place.class_indices[k])
            right = any(
                ids.index(a["category_id"]) == label and _iou(a["bbox"], place.boxes[k]) >= 0.5
                for a in of_image
            )
            fits = _iou(annotation["bbox"], place.boxes[k]) >= 0.5 and (label == own or not right)
            if fits and place.scores[k] > best:
                best, taken = float(place.scores[k]), label
        expected[own][taken] += 1
    whole, first, second = (Confusions(truth) for _ in range(3))
    whole.add_all(every)
    assert list(whole.by_class()) == expected and sum(map(len, expected)) > 2 * len(ids)
    for number, (image_id, part) in enumerate(parts.items()):
        (first, second)[number % 2].add(image_id, part)
    first.add_bytes(second.to_bytes())
    assert list(first.by_class()) == expected
    counts = [list(of_class.values()) for of_class in first.by_class()]
    assert counts == [sorted(values, reverse=True) for values in counts]


def _iou(one: list[float], other: np.ndarray) -> float:
    sides = [min(one[d] + one[d + 2], other[d] + other[d + 2]) - max(one[d], float(other[d])) for d in (0, 1)]
    common = max(sides[0], 0.0) * max(sides[1], 0.0)
    return common / (one[2] * one[3] + float(other[2] * other[3]) - common)
