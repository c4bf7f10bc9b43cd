"""A run whose pool has a category more than its data sets (DATASETS.EXTRA_CATEGORIES), and what it is afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.engine.train_loader import build_train_loader
from detectron2_ext.modeling.described import read_described
from detectron2_ext.paste.build import build_pool
from detectron2_ext.predictor import Predictor
from exchange.catalog import read_training_set
from exchange.config import load_config
from exchange.feedback import read_feedback
from exchange.layout import RunLayout
from tests.detectron2_ext.engine.small_run import LAST_CLASSIFIER, call, write_config, write_pool
from tools import export

CATEGORIES = [2, 5, 9, 12]
FIRST_CLASSIFIER = LAST_CLASSIFIER.replace("2", "0")  # whose boxes overlap enough from the first iteration on


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of which the first round is done, and ``plain.yaml``, which knows of no extra category."""
    folder = tmp_path_factory.mktemp("extra")
    config = write_config(folder)
    config.rename(folder / "plain.yaml")
    (folder / "extra.json").write_text(json.dumps([{"id": 12, "name": "yellow"}]))
    settings = {
        "_BASE_": "plain.yaml",
        "DATASETS": {"EXTRA_CATEGORIES": str(folder / "extra.json")},
        "INPUT": {"USE_COPY_METHOD": "syn_copy"},
        "FEEDBACK": {"TIMEOUT": 0.1},
    }
    config.write_text(yaml.safe_dump(settings))
    layout = RunLayout(str(folder / "run"))
    write_pool(layout, 0, extra=(12,))
    call(config)
    return folder


def results(folder: Path) -> bytes:
    return (folder / "run/train/inference/small_val/lvis_instances_results.json").read_bytes()


def test_the_extra_category_is_pasted_and_learnt_as_the_last_class(trained: Path) -> None:
    cfg = load_config(str(trained / "config.yaml"))
    dataset = DetectionDataset(*read_training_set(cfg))
    pool = build_pool(cfg, RunLayout(str(trained / "run")), 0, dataset)
    batches = build_train_loader(cfg, start_iteration=0, num_iterations=4, dataset=dataset, pool=pool)
    classes = {
        label for batch in batches for entry in batch for label in entry["instances"].gt_classes.tolist()
    }
    assert classes == {0, 1, 2, 3}
    first, last = (
        torch.load(trained / f"run/train/{name}.pth", weights_only=True)["model"][FIRST_CLASSIFIER]
        for name in ("model_initial", "model_0000002")
    )
    moved = torch.linalg.vector_norm(last - first, dim=1)
    assert len(moved) == len(CATEGORIES) + 1
    assert moved[3] > 0.5 * moved[:3].min() > 1000 * moved[4]  # the background's row, of no loss, only decays


def test_the_feedback_has_its_drift_and_no_ap(trained: Path) -> None:
    for name, has_drift in (("initial", False), ("rd00", True)):
        feedback = read_feedback(str(trained / f"run/feedback/{name}.json"))
        assert feedback.categories == CATEGORIES
        assert all(ap is not None for ap in [*feedback.mask_ap[:3], *feedback.box_ap[:3]])
        assert feedback.box_ap[3] is feedback.mask_ap[3] is None
        assert all((drift or 0) > 0 for drift in feedback.drift) == has_drift


def test_evaluation_is_that_of_the_exported_network_which_has_no_trace_of_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, out = results(trained), trained / "cut.safetensors"
    assert {record["category_id"] for record in json.loads(found)} <= {2, 5, 9} and len(json.loads(found)) > 9
    checkpoint = str(trained / "run/train/model_0000002.pth")
    monkeypatch.setattr("sys.argv", ["export.py", checkpoint, str(out)])
    export.main()
    described = read_described(str(out))
    heads = described.cfg.MODEL.ROI_HEADS
    assert (heads.NUM_CLASSES, heads.NUM_EXTRA_CLASSES, described.cfg.DATASETS.EXTRA_CATEGORIES) == (3, 0, "")
    assert [category.id for category in described.categories] == [2, 5, 9]
    assert described.content["model"][LAST_CLASSIFIER].shape[0] == 4
    for config in ("plain.yaml", "config.yaml"):  # the latter takes either
        call(trained / config, "--eval-only", "MODEL.WEIGHTS", str(out))
        assert results(trained) == found
    call(trained / "config.yaml", "--eval-only")
    assert results(trained) == found
    assert [category.id for category in Predictor.from_checkpoint(checkpoint).categories] == [2, 5, 9]
