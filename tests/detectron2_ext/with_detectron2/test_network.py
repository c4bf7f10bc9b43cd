"""The network and the data sets in Detectron2's hands."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

pytest.importorskip(
    "detectron2", reason="Detectron2 is not installed: nothing of what works together with it was tested"
)

import detectron2.structures as d2
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model as build_with_detectron2
from detectron2.utils.visualizer import Visualizer

from detectron2_ext import train_net
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.optimizer import build_optimizer
from detectron2_ext.modeling import build_model
from detectron2_ext.with_detectron2.registration import (
    detectron2_config,
    from_detectron2,
    register,
    to_detectron2,
)
from detectron2_ext.with_detectron2.training import validate
from exchange.catalog import builtin_datasets
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from tests.detectron2_ext.engine.small_run import SIDE, write_config
from tests.detectron2_ext.modeling.network_scenes import scene, small_config
from tools.benchmarks import train_step


def test_detectron2_builds_the_network_by_its_name_with_the_same_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = small_config()
    theirs = build_with_detectron2(detectron2_config(cfg)).state_dict()
    assert "the federated loss draws all classes alike" in caplog.text
    ours = build_model(cfg).state_dict()
    assert {name: tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }


def test_losses_and_detections_are_the_same_in_either_project_s_structures() -> None:
    cfg = small_config()
    ours, theirs = build_model(cfg), build_with_detectron2(detectron2_config(cfg))
    theirs.load_state_dict(ours.state_dict())
    batch = [scene(0), scene(1)]
    results = []
    for network, inputs in ((ours, batch), (theirs, [train_step.as_detectron2(record) for record in batch])):
        torch.manual_seed(0)
        results.append(network.train()(inputs))
    assert results[0] == results[1]
    with torch.no_grad():
        plain, converted = ours.eval()(batch), theirs.eval()(batch)
    for one, other in zip(plain, converted, strict=True):
        found = other["instances"]
        assert isinstance(found, d2.Instances) and isinstance(found.pred_boxes, d2.Boxes)
        assert torch.equal(one["instances"].pred_boxes, found.pred_boxes.tensor)
        for field in ("scores", "pred_classes", "pred_masks"):
            assert torch.equal(getattr(one["instances"], field), getattr(found, field))


def test_polygons_become_the_masks_that_detectron2_makes_of_them() -> None:
    instances = d2.Instances((40, 50))
    instances.gt_boxes = d2.Boxes(torch.tensor([[5.0, 5.0, 30.0, 25.0], [0.0, 0.0, 9.0, 9.0]]))
    instances.gt_classes = torch.tensor([1, 0])
    polygons = [[np.array([5.0, 5, 30, 5, 17, 25])], [np.array([0.0, 0, 9, 0, 9, 9, 0, 9])]]
    instances.gt_masks, instances.instance_source = d2.PolygonMasks(polygons), torch.tensor([0, 1])
    ours = from_detectron2(instances)
    assert ours.instance_source.tolist() == [0, 1]
    expected = d2.BitMasks.from_polygon_masks(polygons, 40, 50).tensor
    assert expected.any() and torch.equal(ours.gt_masks.to_full(), expected)
    assert torch.equal(ours.gt_boxes, instances.gt_boxes.tensor)


def test_an_image_without_objects_survives_the_conversion() -> None:
    empty = scene(0, num_objects=0)
    assert len(from_detectron2(train_step.as_detectron2(empty)["instances"])) == 0
    network = build_model(small_config(ROI_HEADS__SCORE_THRESH_TEST=2.0)).eval()
    with torch.no_grad():
        found = to_detectron2(network([empty])[0]["instances"])
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize(("weights", "path"), [("", ""), ("a/b.pth", str(REPOSITORY / "a/b.pth"))])
def test_relative_weights_are_those_of_this_repository(weights: str, path: str, tmp_path: Path) -> None:
    cfg = load_config(str(write_config(tmp_path)), ["MODEL.WEIGHTS", weights])
    assert detectron2_config(cfg).MODEL.WEIGHTS == path


def test_every_data_set_of_this_project_is_in_the_catalogue() -> None:
    assert set(builtin_datasets()) <= set(DatasetCatalog.list())


def test_the_configuration_s_data_sets_replace_what_has_their_names_and_built_in_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("before", "now"):
        (tmp_path / place).mkdir()
        theirs = detectron2_config(load_config(str(write_config(tmp_path / place))))
    assert len(DatasetCatalog.get("small_val")) == 4
    metadata = MetadataCatalog.get("small_val")
    assert metadata.json_file == str(tmp_path / "now/small_val/annotations.json")
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1, 9: 2}
    assert metadata.image_root == str(tmp_path / "now/small_val")
    assert (theirs.MODEL.DEVICE, theirs.OUTPUT_DIR) == ("cpu", str(tmp_path / "now/run/train"))
    assert not theirs.is_new_allowed()
    DatasetCatalog.remove("lvis_digits_val")
    MetadataCatalog.remove("lvis_digits_val")
    register()  # of the network, too, which is known
    assert "lvis_digits_val" in DatasetCatalog
    known = MetadataCatalog.get("lvis_v1_val").json_file
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register()
    assert MetadataCatalog.get("lvis_v1_val").json_file == known


def test_validation_by_other_rules_or_on_another_file_than_detectron2_s_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, ranks = build_model(small_config()), Ranks(0, 1, torch.device("cpu"))
    cfg = load_config(str(write_config(tmp_path)), ["TEST.EVALUATOR", "voc"])
    with pytest.raises(UserError, match=r"TEST\.EVALUATOR.*set it to auto"):
        validate(cfg, network, "small_val", str(tmp_path), ranks)
    (tmp_path / "lvis").mkdir()
    (tmp_path / "small_val/annotations.json").rename(tmp_path / "lvis/lvis_v1_val.json")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match="set DETECTRON2_DATASETS to the folder"):
        validate(load_config(str(tmp_path / "config.yaml")), network, "lvis_v1_val", str(tmp_path), ranks)
    (tmp_path / "datasets").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"TEST\.EVALUATOR"):  # the file is the same, by way of a link
        validate(cfg, network, "lvis_v1_val", str(tmp_path), ranks)


def test_detectron2_s_own_mapper_feeds_the_network_from_a_data_set_of_the_configuration(
    tmp_path: Path,
) -> None:
    cfg = load_config(str(write_config(tmp_path)))
    theirs = detectron2_config(cfg)
    records = DatasetCatalog.get("small_train")
    assert MetadataCatalog.get("small_train").thing_classes == ["red", "green", "blue"]
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.RandomFlip()],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="polygon",
    )
    batch = [mapper(record) for record in records[:2]]
    assert {int(c) for entry in batch for c in entry["instances"].gt_classes} <= {0, 1, 2}
    losses = build_with_detectron2(theirs)(batch)
    assert {"loss_mask", "loss_cls_stage2", "loss_centernet_loc"} <= set(losses)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_predictor_and_visualizer_work_on_a_checkpoint_of_this_project(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path)
    train_net.main(["--config", str(config)])
    checkpoint = str(tmp_path / "run/train/model_0000002.pth")
    cfg = load_config(str(config), ["MODEL.WEIGHTS", checkpoint, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"])
    predictor = DefaultPredictor(detectron2_config(cfg))
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE + 16, 3), dtype=np.uint8)
    found = predictor(image)["instances"]
    assert len(found) and found.image_size == (SIDE, SIDE + 16)
    drawn = Visualizer(image, predictor.metadata).draw_instance_predictions(found.to("cpu"))
    assert drawn.get_image().shape == image.shape
    assert (drawn.get_image() != image).any()
    weights = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in predictor.model.state_dict().items())


def test_detectron2_s_checkpointer_finds_nothing_missing_and_nothing_left_over(tmp_path: Path) -> None:
    network = build_model(small_config())
    DetectionCheckpointer(network, str(tmp_path)).save("model")
    checkpointer = DetectionCheckpointer(build_model(small_config()))
    reported = []
    checkpointer._log_incompatible_keys = reported.append
    checkpointer.load(str(tmp_path / "model.pth"))
    assert [(list(r.missing_keys), list(r.unexpected_keys), list(r.incorrect_shapes)) for r in reported] in (
        [],
        [([], [], [])],
    )
    for name, tensor in network.state_dict().items():
        assert torch.equal(checkpointer.model.state_dict()[name], tensor)


def test_a_step_is_compared_with_detectron2_s_on_the_same_objects_by_the_same_optimiser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = train_step.noise_image(0, side=128)
    ours, theirs = record["instances"], train_step.as_detectron2(record)["instances"]
    assert theirs.image_size == ours.image_size
    assert torch.equal(theirs.gt_boxes.tensor, ours.gt_boxes)
    assert torch.equal(theirs.gt_classes, ours.gt_classes)
    assert torch.equal(theirs.gt_masks.tensor, ours.gt_masks.to_full())
    monkeypatch.setattr("detectron2.engine.SimpleTrainer", trainer := Mock())
    cfg, network = load_config(str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml")), torch.nn.Linear(3, 2)
    train_step._detectron2_step(cfg, network, [record], "cpu")
    optimizer = trainer.call_args.args[2]
    own = build_optimizer(network, cfg).param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    for setting in ("lr", "weight_decay", "betas", "eps"):
        assert optimizer.param_groups[0][setting] == own[setting]
