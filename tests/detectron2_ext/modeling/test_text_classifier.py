import os

import numpy as np
import pytest
import torch
from network_scenes import NUM_CLASSES, scene, small_config

from detectron2_ext.engine.feedback import make_feedback
from detectron2_ext.evaluation import Evaluation
from detectron2_ext.modeling import build_model
from detectron2_ext.modeling.text_classifier import TextClassifier
from exchange.config import REPOSITORY
from exchange.errors import UserError


@pytest.fixture
def features(tmp_path) -> str:
    path = str(tmp_path / "rows.npy")
    np.save(path, np.random.default_rng(0).normal(size=(NUM_CLASSES, 7)))
    return path


def network(path: str, **overrides):
    settings = {"ROI_BOX_HEAD__USE_ZEROSHOT_CLS": True, "ROI_BOX_HEAD__ZEROSHOT_WEIGHT_PATH": path}
    return build_model(small_config(**settings, **overrides))


@pytest.mark.parametrize("bias", [0.0, -4.5, 2.0])
def test_logits_are_the_temperature_times_the_cosine_of_feature_and_text(features, bias):
    classifier = network(features, ROI_BOX_HEAD__NORM_TEMP=30.0, ROI_BOX_HEAD__USE_BIAS=bias).roi_heads
    classifier = classifier.box_predictor[1].cls_score
    assert (classifier.cls_bias is None) == (bias >= 0)
    hidden = torch.randn(6, 24)
    weight, shift = (parameter.detach().double().numpy() for parameter in classifier.linear.parameters())
    projected = hidden.double().numpy() @ weight.T + shift
    rows = np.load(features)
    cosine = (projected @ rows.T) / np.outer(*(np.linalg.norm(each, axis=1) for each in (projected, rows)))
    background = np.zeros((6, 1))
    expected = np.concatenate([30 * cosine, background], axis=1) + min(bias, 0)
    np.testing.assert_allclose(classifier(hidden).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_logits_and_deltas_are_learnt_through_what_they_are_made_of(features):
    torch.manual_seed(0)
    predictor = network(features).roi_heads.box_predictor[0]
    torch.nn.init.normal_(predictor.bbox_pred[2].weight)
    hidden = torch.randn(6, 24).double().requires_grad_()
    assert torch.autograd.gradcheck(predictor.double(), [hidden])
    for values in predictor(hidden):
        (gradient,) = torch.autograd.grad(values.square().sum(), hidden)
        assert gradient.any(1).all()


def test_a_network_with_text_rows_learns_all_but_them_and_detects(features):
    model = network(features, ROI_BOX_HEAD__USE_BIAS=-4.5)
    initial = torch.cat([p.bbox_pred[2].weight.flatten() for p in model.roi_heads.box_predictor])
    assert initial.std().item() == pytest.approx(0.001, rel=0.2)
    for first, _, second in (predictor.bbox_pred for predictor in model.roi_heads.box_predictor):
        assert first.weight.std().item() == pytest.approx(24**-0.5, rel=0.1)
        assert not first.bias.any() and not second.bias.any()
    before = [predictor.cls_score.zs_weight.clone() for predictor in model.roi_heads.box_predictor]
    losses = model.train()([scene(0)])
    sum(losses.values()).backward()
    predictors = {name: p for name, p in model.named_parameters() if "box_predictor" in name}
    names = {name.split(".", 3)[3] for name in predictors}
    layers = ("cls_score.linear", "bbox_pred.0", "bbox_pred.2")  # as Detic's checkpoints call them
    assert names == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")} | {
        "cls_score.cls_bias"
    }
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in predictors.items() if "cls_score" in n
    )
    assert all(f"roi_heads.box_predictor.{n}.cls_score.zs_weight" in model.state_dict() for n in range(3))
    assert all(map(torch.equal, before, (p.cls_score.zs_weight for p in model.roi_heads.box_predictor)))
    assert "instances" in model.eval()([scene(0)])[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"no array", "is no .npy file"),
        (np.ones((NUM_CLASSES + 1, 7)), f"for each of the {NUM_CLASSES} classes"),
        (np.ones(NUM_CLASSES), "must hold a row"),
        (np.ones((NUM_CLASSES, 7), dtype=int), "must hold a row"),  # as identifiers are
        (np.eye(NUM_CLASSES, 7, k=1 - NUM_CLASSES), "not all 0"),  # but of the last
        (np.arange(NUM_CLASSES)[:, None] * np.ones(7), "not all 0"),  # but of the first
        (np.full((NUM_CLASSES, 7), np.nan), "must hold a row of numbers"),
        (np.array([[print]] * NUM_CLASSES), "is no .npy file"),
    ],
    ids=["missing", "text", "classes", "flat", "whole numbers", "zeros", "a zero", "nan", "objects"],
)
def test_a_file_without_a_row_for_each_class_is_named(content, message, tmp_path):
    path = tmp_path / "rows.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=f"ZEROSHOT_WEIGHT_PATH .*{message}"):
        network(str(path))


def test_a_relative_path_begins_in_the_repository(features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = network(os.path.relpath(features, REPOSITORY)).roi_heads.box_predictor[0].cls_score.zs_weight
    assert rows.shape == (7, NUM_CLASSES + 1)


def test_fixed_rows_have_no_drift(tmp_path):
    (tmp_path / "now.pth").write_bytes(b"weights")
    weights = TextClassifier(4, torch.ones(2, 3), 50.0, 0.0).state_dict(
        prefix="roi_heads.box_predictor.2.cls_score."
    )
    feedback = make_feedback(
        Evaluation({"AP": 1.0}, {"AP": 1.0}, [1.0, 2.0], [1.0, 2.0]),
        round_=1,
        iteration=9,
        checkpoint=str(tmp_path / "now.pth"),
        weights=weights,
        before=str(tmp_path / "now.pth"),
        dataset="val",
        category_ids=[2, 5],
    )
    assert feedback.drift == [None, None]
