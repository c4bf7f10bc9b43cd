"""The scores of Pascal VOC and Open Images against their rules written out, prediction by prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detectron2_ext.evaluation.evaluator import build_truth
from detectron2_ext.evaluation.pascal import OPEN_IMAGES, VOC, PascalTruth, read_ancestors
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import CocoTruth
from detectron2_ext.modeling.postprocessing import with_pasted_masks
from detectron2_ext.structures import Instances
from exchange.annotations import AnnotationFile
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from tests.detectron2_ext.evaluation.worlds import World, random_world

_CONFIG = str(REPOSITORY / "configs/digits/Base-digits.yaml")


def _predictions(found: dict[int, Instances]) -> Predictions:
    return Predictions.concatenate([Predictions.from_instances(i, p, 300) for i, p in found.items()])


def _pixels(segmentation: Any, image: dict[str, Any]) -> np.ndarray:
    if isinstance(segmentation, list):
        parts = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
        segmentation = coco_mask.merge(parts)
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
    return coco_mask.decode(segmentation).astype(bool)


def _overlap(
    found: Instances, number: int, annotation: dict[str, Any], image: dict[str, Any], kind: str
) -> float:
    if kind == "mask":
        mine, theirs = found.pred_masks[number].numpy(), _pixels(annotation["segmentation"], image)
        common, own, other = int((mine & theirs).sum()), int(mine.sum()), int(theirs.sum())
    else:
        x1, y1, x2, y2 = found.pred_boxes[number].double().tolist()
        x, y, w, h = annotation["bbox"]
        common = max(0.0, min(x2, x + w) - max(x1, x)) * max(0.0, min(y2, y + h) - max(y1, y))
        own, other = (x2 - x1) * (y2 - y1), w * h
    whole = own if annotation.get("iscrowd") else own + other - common
    return common / whole if whole else 0.0


def _average_precision(
    objects: dict[int, list[dict]],
    found: dict[int, Instances],
    images: dict,
    class_index: int,
    limit: float,
    kind: str,
) -> float | None:
    """One class at one threshold, in plain loops and float64."""
    wanted = sum(not o.get("difficult") for of_image in objects.values() for o in of_image)
    if not wanted:
        return None
    judged: list[tuple[float, int, bool]] = []  # score, arrival, correct
    for image_id, instances in found.items():
        annotated = objects.get(image_id, [])
        single = [o for o in annotated if not o.get("iscrowd")]
        groups = [o for o in annotated if o.get("iscrowd")]
        numbers = [n for n in range(len(instances)) if int(instances.pred_classes[n]) == class_index]
        taken: set[int] = set()
        for n in sorted(numbers, key=lambda n: -float(instances.scores[n])):
            score, arrival = float(instances.scores[n]), len(judged)
            overlaps = [_overlap(instances, n, o, images[image_id], kind) for o in single]
            inside = [_overlap(instances, n, o, images[image_id], kind) for o in groups]
            best = int(np.argmax(overlaps)) if single else None
            if best is not None and overlaps[best] >= limit and single[best].get("difficult"):
                continue
            if best is not None and overlaps[best] >= limit and id(single[best]) not in taken:
                taken.add(id(single[best]))
                judged.append((score, arrival, True))
            elif groups and max(inside) >= limit:
                group = groups[int(np.argmax(inside))]
                if id(group) not in taken:
                    taken.add(id(group))
                    judged.append((score, arrival, True))
            else:
                judged.append((score, arrival, False))
    correct = [right for _, _, right in sorted(judged, key=lambda j: (-j[0], j[1]))]
    curve = [(sum(correct[: n + 1]) / wanted, sum(correct[: n + 1]) / (n + 1)) for n in range(len(correct))]
    area = before = 0.0
    for recall, _ in curve:
        if recall > before:
            area += (recall - before) * max(p for r, p in curve if r >= recall)
            before = recall
    return area


def _by_class(world: World, above: dict[int, set[int]] | None = None) -> dict[int, dict[int, list[dict]]]:
    objects: dict[int, dict[int, list[dict]]] = {int(c): {} for c in world.category_ids}
    for annotation in world.annotations:
        own = annotation["category_id"]
        for category_id in {own, *(above or {}).get(own, ())}:
            objects[category_id].setdefault(annotation["image_id"], []).append(annotation)
    return objects


def _mean(values: list[float | None]) -> float:
    defined = [value for value in values if value is not None]
    return 100 * sum(defined) / len(defined)


def _voc_world(seed: int) -> tuple[World, dict[int, Instances]]:
    """With objects that are marked difficult, and scores that all differ."""
    world, found = random_world(seed, lvis=False)
    rng = np.random.default_rng(seed)
    for annotation in world.annotations:
        annotation["difficult"] = int(rng.random() < 0.25)
    return world, _without_ties(found, rng)


def _without_ties(found: dict[int, Instances], rng: np.random.Generator) -> dict[int, Instances]:
    for instances in found.values():
        instances.scores = torch.from_numpy(rng.random(len(instances))).float()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_voc_scores_are_those_of_its_rules(seed: int) -> None:
    world, found = _voc_world(seed)
    images = {image["id"]: image for image in world.images}
    evaluation = PascalTruth(world.file, VOC).score(_predictions(found))
    found = {image_id: with_pasted_masks(instances) for image_id, instances in found.items()}
    objects = _by_class(world)
    for kind, summary, per_class in (
        ("box", evaluation.box, evaluation.box_ap),
        ("mask", evaluation.mask, evaluation.mask_ap),
    ):
        table = {
            t: [
                _average_precision(objects[c], found, images, index, t / 10, kind)
                for index, c in enumerate(world.category_ids.tolist())
            ]
            for t in range(1, 10)
        }
        assert summary["AP50"] == pytest.approx(_mean(table[5]), abs=1e-9)
        assert summary["AP70"] == pytest.approx(_mean(table[7]), abs=1e-9)
        assert summary["AP"] == pytest.approx(_mean([v for row in table.values() for v in row]), abs=1e-9)
        for index, value in enumerate(per_class):
            of_class = [row[index] for row in table.values()]
            assert (value is None) == (of_class[0] is None)
            assert value is None or value == pytest.approx(_mean(of_class), abs=1e-9)
        assert None in per_class and 5 < summary["AP50"] < 95


@pytest.mark.parametrize("seed", range(4))
def test_open_images_scores_are_those_of_its_rules(seed: int) -> None:
    world, found = random_world(seed, lvis=False, crowds=True)
    rng = np.random.default_rng(seed)
    found = _without_ties(found, rng)
    ids = world.category_ids.tolist()
    above = {ids[0]: {ids[6]}, ids[1]: {ids[6]}, ids[6]: set(), ids[2]: {ids[7]}}
    present: dict[int, set[int]] = {image["id"]: set() for image in world.images}
    for annotation in world.annotations:
        own = annotation["category_id"]
        present[annotation["image_id"]] |= {own, *above.get(own, ())}
    for image in world.images:
        absent = [c for c in ids if c not in present[image["id"]]]
        # some are seen to be there without an object, and not all that have one are labelled
        image["pos_category_ids"] = [c for c in ids if rng.random() < (0.1 if c in absent else 0.3)]
        image["neg_category_ids"] = [c for c in absent if rng.random() < 0.4]
    judged = {
        image["id"]: present[image["id"]]
        | {one for c in image["pos_category_ids"] for one in {c, *above.get(c, ())}}
        | {c for c in ids if {c, *above.get(c, ())} & set(image["neg_category_ids"])}
        for image in world.images
    }
    known = {
        image_id: with_pasted_masks(instances)[
            torch.tensor([ids[int(c)] in judged[image_id] for c in instances.pred_classes]).bool()
        ]
        for image_id, instances in found.items()
    }
    assert sum(map(len, known.values())) < sum(map(len, found.values()))
    evaluation = PascalTruth(world.file, OPEN_IMAGES, above).score(_predictions(found))
    images = {image["id"]: image for image in world.images}
    objects = _by_class(world, above)
    for kind, summary, per_class in (
        ("box", evaluation.box, evaluation.box_ap),
        ("mask", evaluation.mask, evaluation.mask_ap),
    ):
        expected = [_average_precision(objects[c], known, images, i, 0.5, kind) for i, c in enumerate(ids)]
        assert [None if v is None else pytest.approx(100 * v, abs=1e-9) for v in expected] == per_class
        assert summary["AP"] == summary["AP50"] == pytest.approx(_mean(expected), abs=1e-9)
    assert evaluation.box_ap[6] is not None  # only through the categories below it


def _square(image_id: int, category_id: int, x: int, **flags: int) -> dict[str, Any]:
    corners = [x, 0, x + 10, 0, x + 10, 10, x, 10]
    return {
        "id": image_id * 100 + x,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, 0, 10, 10],
        "area": 100,
        "segmentation": [corners],
        **flags,
    }


def _squares(*places: tuple[int, float]) -> Instances:
    """Predictions of class 0 at x with a score."""
    return Instances(
        (20, 60),
        pred_boxes=torch.tensor([[x, 0, x + 10, 10] for x, _ in places]).float(),
        scores=torch.tensor([score for _, score in places]),
        pred_classes=torch.zeros(len(places), dtype=torch.int64),
        pred_masks=torch.ones(len(places), 2, 2),
    )


def _world(*annotations: dict[str, Any], **labels: list[int]) -> AnnotationFile:
    image = {"id": 1, "height": 20, "width": 60, **labels}
    categories = [
        {"id": 3, "name": "cat", "freebase_id": "/m/cat"},
        {"id": 8, "name": "pet", "freebase_id": "/m/pet"},
    ]
    return AnnotationFile.of_records(
        "squares.json", images=[image], annotations=annotations, categories=categories
    )


@pytest.mark.parametrize("build", [CocoTruth, lambda world: PascalTruth(world, VOC)])
@pytest.mark.parametrize("segmentation", [[], [[]], [[0, 0, 10, 10]]])
def test_polygons_of_fewer_than_three_points_are_no_mask_and_no_box(build, segmentation) -> None:
    truth = build(_world(_square(1, 3, 0) | {"segmentation": segmentation}))
    found = _squares((0, 0.9), (0, 0.8))
    found.pred_boxes[1] = torch.tensor([0.0, 0.0, 60.0, 20.0])  # the whole image
    evaluation = truth.score(_predictions({1: found}))
    assert (evaluation.box["AP"], evaluation.mask["AP"]) == (pytest.approx(100.0), 0.0)


def test_all_polygons_of_an_object_are_its_mask() -> None:
    parts = [[0, 0, 4, 0, 4, 10, 0, 10], [4, 0, 10, 0, 10, 10, 4, 10]]
    whole, in_parts = (
        PascalTruth(_world(_square(1, 3, 0) | of), VOC) for of in ({}, {"segmentation": parts})
    )
    found = _predictions({1: _squares((0, 0.9))})
    assert in_parts.score(found) == whole.score(found) and whole.score(found).mask["AP70"] == 100


def test_the_hierarchy_file_gives_the_categories_above(tmp_path: Path) -> None:
    path = tmp_path / "hierarchy.json"
    tree = {
        "LabelName": "/m/entity",
        "Subcategory": [{"LabelName": "/m/pet", "Subcategory": [{"LabelName": "/m/cat"}]}],
    }
    path.write_text(json.dumps(tree))
    world = _world(_square(1, 3, 0))
    assert read_ancestors(str(path), world) == {3: {8}, 8: set()}
    known = [{"id": id_, "name": name, "freebase_id": f"/m/{name}"} for id_, name in ((0, "pet"), (4, "cat"))]
    from_0 = AnnotationFile.of_records("a", images=[], annotations=[], categories=known)
    assert read_ancestors(str(path), from_0) == {4: {0}, 0: set()}
    cfg = load_config(_CONFIG, ["TEST.EVALUATOR", "openimages", "TEST.HIERARCHY", str(path)])
    evaluation = build_truth(cfg, world).score(_predictions({1: _squares((0, 0.9))}))
    assert evaluation.box_ap == [100.0, 0.0]
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match=r"TEST\.HIERARCHY.*no tree"):
        build_truth(cfg, world)
    path.write_text(json.dumps({"LabelName": "/m/stone"}))
    with pytest.raises(UserError, match="none of the categories"):
        build_truth(cfg, world)


def test_a_category_has_all_the_categories_above_it_over_every_level_and_at_every_place(
    tmp_path: Path,
) -> None:
    def node(name: str, *below: dict[str, Any]) -> dict[str, Any]:
        return {"LabelName": name, "Subcategory": list(below)}

    # Entity, unknown as "thing" is, over animal > thing > pet > poodle and over toy > poodle.
    animal = node("animal", node("thing", node("pet", {"LabelName": "poodle"})))
    tree = node("entity", animal, node("toy", {"LabelName": "poodle"}))
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    ids = {"animal": 1, "pet": 2, "poodle": 3, "toy": 4}
    categories = [{"id": number, "name": name, "freebase_id": name} for name, number in ids.items()]
    above = read_ancestors(str(tmp_path / "tree.json"), World([], [], categories).file)
    assert above == {1: set(), 2: {1}, 3: {1, 2, 4}, 4: set()}


def test_the_configuration_chooses_the_rules() -> None:
    world = _world(_square(1, 3, 0))
    summaries = {
        kind: set(
            build_truth(load_config(_CONFIG, ["TEST.EVALUATOR", kind]), world).score(_predictions({})).mask
        )
        for kind in ("auto", "voc", "openimages")
    }
    assert summaries == {
        "auto": {"AP", "AP50", "AP75", "APs", "APm", "APl"},
        "voc": {"AP", "AP50", "AP70"},
        "openimages": {"AP", "AP50"},
    }
    with pytest.raises(UserError, match=r"TEST\.EVALUATOR is 'vco'"):
        build_truth(load_config(_CONFIG, ["TEST.EVALUATOR", "vco"]), world)
