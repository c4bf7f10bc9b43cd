"""BSGAL's score of single instances: by its definition in float64, and what it depends on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.engine.build_selection import build_gradient_rank
from detectron2_ext.engine.gradient_rank import GradientRank
from detectron2_ext.modeling import build_detector
from detectron2_ext.modeling.described import Category, DescribedWeights
from detectron2_ext.paste.pool import IndexedCutouts, InstancePool
from exchange.catalog import read_training_set
from exchange.config import load_config
from exchange.layout import RunLayout
from tests.detectron2_ext.engine.selected import Exact
from tests.detectron2_ext.engine.small_run import write_config, write_pool

_TESTS = 3


def build(folder: Path, *overrides: str, rounds: tuple[int, ...] = (0,)) -> GradientRank:
    every_class = ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "False"]
    cfg = load_config(str(folder / "config.yaml"), [*every_class, *overrides])
    layout = RunLayout(str(folder / "run"))
    for round_ in rounds:
        write_pool(layout, round_)
    torch.manual_seed(0)
    categories = [Category(number, str(number)) for number in (2, 5, 9)]
    weights = DescribedWeights("w.pth", {"model": build_detector(cfg).state_dict()}, cfg, categories)
    dataset = DetectionDataset(*read_training_set(cfg))
    pool = InstancePool(IndexedCutouts(layout, rounds), dataset.category_ids)
    return build_gradient_rank(cfg, weights, dataset, pool, torch.device("cpu"), _TESTS)


@pytest.mark.parametrize("layers", [[], ["cls_score", "backbone.fpn"]])
def test_the_score_is_the_cosine_with_the_mean_gradient_of_real_objects_of_the_class(
    tmp_path: Path, layers: list[str]
) -> None:
    write_config(tmp_path)
    rank = build(tmp_path, "MODEL.ACTIVE_GRAD_LAYERS", str(layers))
    for predictor in rank._network.roi_heads.box_predictor:  # so that the backbone's gradients count
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.5)
    seen: list[dict[str, Any]] = []
    losses = rank._network.class_losses
    rank._network.class_losses = lambda batch, through: (seen.extend(batch), losses(batch, through))[1]
    found = dict(rank())
    assert list(losses(seen[:1], True)) == [f"loss_cls_stage{stage}" for stage in range(3)]
    assert not any(module.training for module in rank._network.modules())
    exact = Exact(rank._network)
    parts = layers or ["roi_heads.box_head", "roi_heads.box_predictor"]
    for name, parameter in rank._network.named_parameters():
        assert parameter.requires_grad == any(part in name for part in parts), name
    assert sorted(found) == [0, 1, 2] and len(seen) == 3 * (_TESTS + 1)
    for class_index in range(3):
        *tests, pasted = seen[class_index * (_TESTS + 1) : (class_index + 1) * (_TESTS + 1)]
        for record, source in [*((test, 0) for test in tests), (pasted, 1)]:
            assert set(record["instances"].gt_classes.tolist()) == {class_index}
            assert set(record["instances"].instance_source.tolist()) == {source}
            assert class_index in (record["image_id"] % 3, (record["image_id"] + 1) % 3)
        assert len(pasted["instances"]) == 1
        mean = sum(exact.gradient_of_tests([test]) for test in tests) / _TESTS
        own = exact.gradient_of_tests([pasted])
        cosine = float(mean @ own / (mean.norm() * own.norm()))
        assert found[class_index] == pytest.approx(cosine, rel=1e-3) and abs(cosine) < 0.999


def test_a_score_hangs_on_seed_and_name_and_a_class_without_real_objects_has_none(tmp_path: Path) -> None:
    write_config(tmp_path)
    path = tmp_path / "small_train" / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 5]
    path.write_text(json.dumps(content))
    # Of the classes that count two are drawn for each instance.
    drawn = ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True", "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CAT", "2"]
    one = dict(build(tmp_path, *drawn, rounds=(1,))())
    both = dict(build(tmp_path, *drawn, rounds=(0, 1))())
    assert [math.isnan(score) for score in one.values()] == [False, True, False]
    for place in (0, 2):
        assert both[3 + place] == one[place] != both[place]
        assert dict(build(tmp_path, *drawn, "SEED", "7", rounds=(1,))())[place] != one[place]
    means = [build(tmp_path, "SEED", seed)._mean_of_tests(0).gradient for seed in ("0", "7", "7")]
    assert not torch.equal(*means[:2]) and torch.equal(*means[1:])


def test_an_instance_that_no_view_shows_has_no_score(tmp_path: Path) -> None:
    write_config(tmp_path)
    rank = build(tmp_path)
    tried: list[int] = []
    rank._paste = lambda scene, index, *_: tried.append(index)
    assert all(math.isnan(score) for score in dict(rank()).values())
    assert tried == [0] * 10 + [1] * 10 + [2] * 10


def test_images_that_cannot_be_read_are_named_and_others_shown_with_the_instance(tmp_path: Path) -> None:
    write_config(tmp_path)
    damaged = sorted((tmp_path / "small_train").glob("*.png"))[::2]
    for path in damaged:
        path.write_bytes(b"no image")
    assert not any(math.isnan(score) for score in dict(build(tmp_path)()).values())
    rank = build(tmp_path)
    rank._tests = lambda *_: None  # so that what is skipped was to be pasted into
    assert len(dict(rank())) == 3
    assert rank.skipped and all(any(str(path) in said for path in damaged) for said in rank.skipped)
