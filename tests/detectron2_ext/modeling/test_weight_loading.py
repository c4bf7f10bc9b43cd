import logging
import pickle

import numpy as np
import pytest
import timm
import torch
from network_scenes import small_config
from safetensors.torch import save_file

from detectron2_ext.modeling import build_model, load_weights, resnet
from exchange.errors import UserError


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return build_model(small_config(), [1, 2, 3, 4, 5])


def fresh(**overrides):
    torch.manual_seed(2)
    return build_model(small_config(**overrides))


def same(network, weights):
    state = network.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in state)


SAFETENSORS = {  # what another tool says of them
    "safetensors": None,
    "safetensors with settings": {"format": "pt", "settings": "another tool's"},
    "safetensors with categories": {"format": "pt", "categories": "another tool's"},
}


@pytest.mark.parametrize("form", ["pth", "lightning", "bare", "ddp", *SAFETENSORS])
def test_a_checkpoint_returns_every_weight(source, form, tmp_path):
    weights = source.state_dict()
    path = str(tmp_path / ("x.safetensors" if form in SAFETENSORS else "x.pth"))
    if form in SAFETENSORS:
        save_file(weights, path, SAFETENSORS[form])
    elif form == "lightning":
        torch.save({"state_dict": weights}, path)
    elif form == "ddp":
        torch.save(
            {"model": {f"module.{name}": value for name, value in weights.items()}, "iteration": 7}, path
        )
    else:
        torch.save({"model": weights, "optimizer": {"lr": 1.0}} if form == "pth" else weights, path)
    network = fresh()
    report = load_weights(network, path)
    assert same(network, weights)
    assert report.loaded == sorted(weights)
    assert report.fresh == report.unused == [] and not report.converted and not report.averaged


def test_averaged_weights_are_taken_where_they_are_asked_for_and_there(source, tmp_path):
    weights = source.state_dict()
    average = {name: value + 1 for name, value in weights.items()}
    path = str(tmp_path / "x.pth")
    torch.save({"model": weights, "model_ema": average}, path)
    network = fresh()
    assert load_weights(network, path, use_ema=True).averaged and same(network, average)
    assert not load_weights(network, path).averaged and same(network, weights)
    for nothing in ({}, {"model_ema": {}}, {"model_ema": None}):
        torch.save({"model": weights} | nothing, path)
        network = fresh()
        assert not load_weights(network, path, use_ema=True).averaged and same(network, weights)


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(source, change, tmp_path):
    weights = dict(source.state_dict())
    name = "roi_heads.mask_head.predictor.weight"
    reason = {
        "missing": rf"1 parameters are missing \(first {name}\)",
        "surplus": r"1 have no place \(first roi_heads\.box_head\.3\.fc1\.weight\)",
        "shape": rf"1 have another shape \(first {name}: \(5, 8, 1, 1\) instead of \(1, 8, 1, 1\)\)",
    }[change]
    if change == "surplus":
        weights["roi_heads.box_head.3.fc1.weight"] = torch.zeros(2, 2)
    elif change == "missing":
        del weights[name]
    else:
        weights[name] = torch.zeros(5, 8, 1, 1)
    torch.save({"model": weights}, tmp_path / "x.pth")
    network = fresh()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"x\.pth is of another network than the configuration: {reason}"):
        load_weights(network, str(tmp_path / "x.pth"))
    assert same(network, before)


def test_a_file_whose_names_mislead_is_refused_too(source, tmp_path):
    bias = "roi_heads.box_predictor.0.cls_score.bias"
    weights = dict(source.state_dict()) | {bias: torch.tensor(1.0)}
    swin = {
        f"layers.{rest}": torch.zeros(1)
        for rest in ("3.downsample.reduction.weight", "x.downsample.y", "².downsample.y", "1")
    }
    swin_config = {"BACKBONE__NAME": "build_swintransformer_fpn_backbone", "SWIN__SIZE": "T"}
    swin_config["FPN__IN_FEATURES"] = ["swin1", "swin2", "swin3"]
    no_average = {"model": {}, "model_ema": torch.ones(2)}
    for content, config in ((weights, {}), (no_average, {}), (swin, swin_config)):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UserError, match="x.pth"):
            load_weights(fresh(**config), str(tmp_path / "x.pth"), use_ema=True)


def test_another_number_of_classes_is_an_error_unless_the_classifier_may_be_new(source, tmp_path, caplog):
    path = str(tmp_path / "x.pth")
    torch.save({"model": source.state_dict()}, path)
    network = fresh(ROI_HEADS__NUM_CLASSES=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(
        UserError,
        match=r"trained on 5 classes, but .*NUM_CLASSES is 8: .*MODEL\.NEW_CLASSIFIER True, or .* to 5",
    ):
        load_weights(network, path)
    with caplog.at_level(logging.WARNING):
        report = load_weights(network, path, new_classifier=True)
    assert len(report.fresh) == 9
    assert all(name.endswith(("cls_score.weight", "cls_score.bias", "freq_weight")) for name in report.fresh)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in report.fresh)
    assert torch.equal(
        network.state_dict()["roi_heads.box_head.0.fc1.weight"], source.roi_heads.box_head[0].fc1.weight
    )
    shown = ", ".join(report.fresh[:8])
    assert caplog.messages[-1] == f"{path}: initial values kept: 9, {shown}, …"
    plain = fresh(ROI_HEADS__NUM_CLASSES=8, ROI_BOX_HEAD__USE_FED_LOSS=False)
    weighed_by = [f"roi_heads.box_predictor.{stage}.freq_weight" for stage in range(3)]
    torch.save({"model": source.state_dict() | {"pixel_mean": torch.zeros(3)}}, path)
    assert load_weights(plain, path, new_classifier=True).unused == ["pixel_mean", *weighed_by]
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    assert load_weights(network, str(tmp_path / "plain.pth"), new_classifier=True).fresh == weighed_by


@pytest.mark.parametrize("extra", [0, 2])
def test_other_classes_of_the_same_number_are_told_by_their_names(source, tmp_path, extra):
    path, theirs = str(tmp_path / "x.pth"), ["ant", "bee", "cat", "dog", "elk"]
    categories = [{"id": number, "name": name} for number, name in enumerate(theirs)]
    torch.save({"model": source.state_dict(), "categories": categories}, path)
    network = fresh(ROI_HEADS__NUM_CLASSES=5 + extra, ROI_HEADS__NUM_EXTRA_CLASSES=extra)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ours = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu"][: 5 + extra]
    with pytest.raises(
        UserError, match=r"trained on other classes \('cat' instead of 'cow'\).*NEW_CLASSIFIER True"
    ):
        load_weights(network, path, classes=ours)
    fresh_ones = load_weights(network, path, classes=ours, new_classifier=True).fresh
    assert len(fresh_ones) == 9 and all("cls_score" in name or "freq_weight" in name for name in fresh_ones)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in fresh_ones)
    for known in ([*theirs, *ours[5:]], None):
        for new_classifier in (False, True):
            assert not load_weights(network, path, classes=known, new_classifier=new_classifier).fresh
    torch.save({"model": source.state_dict(), "categories": theirs}, path)  # in a form that is not ours
    assert not load_weights(network, path, classes=ours).fresh
    with pytest.raises(UserError, match="trained on 5 classes, but .* is 8"):
        load_weights(fresh(ROI_HEADS__NUM_CLASSES=8), path, classes=["x"] * 8)


@pytest.mark.parametrize("new_classifier", [False, True])
@pytest.mark.parametrize("value", [None, torch.zeros(5, 8, 1, 1)])
def test_another_number_of_classes_beside_other_differences_is_another_network(
    source, value, new_classifier, tmp_path
):
    mask_head = {"roi_heads.mask_head.predictor.weight": value}
    weights = {
        name: tensor for name, tensor in (source.state_dict() | mask_head).items() if tensor is not None
    }
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is of another network than the configuration: "):
        load_weights(fresh(ROI_HEADS__NUM_CLASSES=8), str(tmp_path / "x.pth"), new_classifier=new_classifier)


def test_pixel_statistics_in_old_checkpoints_are_named_not_loaded(source, tmp_path, caplog):
    path = str(tmp_path / "x.pth")
    caplog.set_level(logging.INFO)
    statistics = {name: torch.zeros(3, 1, 1) for name in ("pixel_mean", "pixel_std")}
    other = dict.fromkeys("abcdefg", 1)
    for count, and_more in ((8, ""), (9, ", …")):
        unused = dict(list((statistics | other).items())[:count])
        torch.save({"model": source.state_dict(), "model_ema": source.state_dict() | unused}, path)
        caplog.clear()
        assert load_weights(fresh(), path, use_ema=True).unused == list(unused)
        assert caplog.messages == [
            f"loaded {len(source.state_dict())} averaged weights from {path}",
            f"{path}: in the file, without use: {count}, pixel_mean, pixel_std, a, b, c, d, e, f{and_more}",
        ]


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickled_backbone_fills_the_backbone_and_only_that(protocol, tmp_path, monkeypatch):
    if protocol == 5:  # as of the full sizes, whose unused fc has another number of classes than the file
        monkeypatch.setattr(resnet, "_WITH_CLASSIFIER", {small_config().MODEL.TIMM.BASE_NAME})
    torch.manual_seed(3)
    weights = timm.create_model(small_config().MODEL.TIMM.BASE_NAME, num_classes=11).state_dict()
    arrays = {
        name: value.numpy() if value.ndim else np.int64(value.item())
        for name, value in weights.items()
        if protocol == 5 or not name.endswith("num_batches_tracked")  # which old files do not have
    }
    content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    network = fresh()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_weights(network, str(tmp_path / "x.pkl"))
    after = network.state_dict()
    for name in after:
        original = name.removeprefix("backbone.bottom_up.base.")
        if original in arrays and not original.startswith("fc."):
            assert torch.equal(after[name], weights[original])
            assert name in report.loaded
        else:
            assert torch.equal(after[name], before[name])
            assert name in report.fresh
    assert report.unused == ["fc.weight", "fc.bias"]


def test_a_backbone_with_one_layer_too_many_is_refused(tmp_path):
    weights = timm.create_model(small_config().MODEL.TIMM.BASE_NAME).state_dict()
    torch.save(weights | {"layer5.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"1 have no place \(first layer5"):
        load_weights(fresh(), str(tmp_path / "x.pth"))


def test_a_backbone_of_other_shapes_is_refused(tmp_path):
    weights = timm.create_model(small_config().MODEL.TIMM.BASE_NAME).state_dict()
    name = next(iter(weights))
    torch.save(weights | {name: weights[name][1:]}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="another network than the configuration: 1 "):
        load_weights(fresh(), str(tmp_path / "x.pth"))


def test_a_backbone_of_another_depth_is_refused(tmp_path):
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="another network than the configuration: .* have no place"):
        load_weights(fresh(), str(tmp_path / "x.pth"))
