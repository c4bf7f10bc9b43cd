"""Schedule, clipping, learning rates of the parts, and the average weights, against formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detectron2_ext.engine.optimizer import build_clip, build_optimizer, build_schedule
from detectron2_ext.engine.state import ModelEma
from exchange.errors import UserError
from tests.detectron2_ext.engine.tiny import TinyNet, tiny_config


def _formula(i: int, n: int, warmup: int, factor: float, end: float) -> float:
    def cosine(position: float) -> float:
        return end + (1 - end) * (1 + math.cos(math.pi * position / n)) / 2

    if i < warmup:
        return factor + (cosine(warmup) - factor) * i / warmup
    return cosine(i)


@pytest.mark.parametrize("warmup", [0, 7, 40, 90, 120])
def test_learning_rate_warms_up_and_follows_half_a_cosine_over_all_rounds(warmup: int) -> None:
    cfg = tiny_config(
        *("SOLVER.MAX_ITER", "90", "SOLVER.ROUND_ITERS", "30", "SOLVER.WARMUP_ITERS", str(warmup)),
        *("SOLVER.WARMUP_FACTOR", "0.01", "SOLVER.BASE_LR", "0.2", "SOLVER.BASE_LR_END", "0.02"),
    )
    optimizer = build_optimizer(TinyNet(), cfg)
    schedule = build_schedule(optimizer, cfg)
    for iteration in range(90):
        expected = 0.2 * _formula(iteration, 90, min(warmup, 90), 0.01, 0.1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        schedule.step()


def test_defaults_are_those_of_the_method() -> None:
    cfg = tiny_config()
    optimizer = build_optimizer(TinyNet(), cfg)
    schedule = build_schedule(optimizer, cfg)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    (factor,) = schedule.lr_lambdas
    assert factor(0) == pytest.approx(1e-4)
    assert factor(9_999) == pytest.approx(_formula(9_999, 90_000, 10_000, 1e-4, 0.0), rel=1e-9)
    assert factor(45_000) == pytest.approx(0.5)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MODEL_EMA, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE) == (
        1e-4,
        0.999,
        1.0,
    )


def test_backbone_and_named_parameters_have_their_own_learning_rates() -> None:
    cfg = tiny_config(
        *("SOLVER.BASE_LR", "0.1", "SOLVER.BACKBONE_MULTIPLIER", "0.5"),
        *("SOLVER.CUSTOM_MULTIPLIER", "3.0", "SOLVER.CUSTOM_MULTIPLIER_NAME", "[cls_score, backbone.bias]"),
    )
    model = TinyNet()
    model.head.bias.requires_grad_(False)
    model.beside_backbone = nn.Linear(1, 1)
    rates = {
        id(parameter): group["lr"]
        for group in build_optimizer(model, cfg).param_groups
        for parameter in group["params"]
    }
    named = {name: rates.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert named["backbone.weight"] == pytest.approx(0.05)
    assert named["backbone.bias"] == pytest.approx(0.15)  # both factors
    assert named["head.weight"] == named["beside_backbone.weight"] == pytest.approx(0.1)
    assert named["roi_heads.box_predictor.0.cls_score.weight"] == pytest.approx(0.3)
    assert named["head.bias"] is None


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_formula_in_float64(nesterov: bool) -> None:
    cfg = tiny_config(
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", "0.8", "SOLVER.NESTEROV", str(nesterov)),
        *("SOLVER.BASE_LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.02"),
    )
    weight = (model := TinyNet()).head.weight
    optimizer = build_optimizer(model, cfg)
    expected, velocity = weight.detach().double(), torch.zeros_like(weight, dtype=torch.float64)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        gradient = weight.grad.double() + 0.02 * expected
        velocity = 0.8 * velocity + gradient
        expected = expected - 0.1 * (gradient + 0.8 * velocity if nesterov else velocity)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


def _clipped(kind: str, limit: float, norm_type: float = 2.0) -> list[torch.Tensor]:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, -4.0, 0.0]), torch.tensor([0.1, 0.2])
    clip = build_clip(
        tiny_config(
            *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", str(limit)),
            *("SOLVER.CLIP_GRADIENTS.NORM_TYPE", str(norm_type)),
        )
    )
    clip(parameters)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def test_gradients_are_left_alone_where_clipping_is_off() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([7.0])
    build_clip(tiny_config("SOLVER.CLIP_GRADIENTS.ENABLED", "False"))([parameter])
    assert parameter.grad.tolist() == [7.0]


def test_gradients_are_clipped_by_element_by_parameter_or_all_together() -> None:
    torch.testing.assert_close(_clipped("value", 1.0)[0], torch.tensor([1.0, -1.0, 0.0]))
    by_parameter = _clipped("norm", 1.0)
    torch.testing.assert_close(by_parameter[0], torch.tensor([0.6, -0.8, 0.0]))
    torch.testing.assert_close(by_parameter[1], torch.tensor([0.1, 0.2]))
    together = _clipped("full_model", 1.0)
    scale = 1 / math.sqrt(25 + 0.05)
    torch.testing.assert_close(together[1], torch.tensor([0.1, 0.2]) * scale)
    torch.testing.assert_close(_clipped("norm", 1.0, norm_type=1.0)[0], torch.tensor([3.0, -4.0, 0.0]) / 7)
    torch.testing.assert_close(_clipped("full_model", 1.0, norm_type=1.0)[1], torch.tensor([0.1, 0.2]) / 7.3)


@pytest.mark.parametrize(
    ("key", "value", "builder"),
    [
        ("SOLVER.OPTIMIZER", "ADAM", lambda cfg: build_optimizer(TinyNet(), cfg)),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full", build_clip),
        (
            "SOLVER.LR_SCHEDULER_NAME",
            "WarmupMultiStepLR",
            lambda cfg: build_schedule(build_optimizer(TinyNet(), cfg), cfg),
        ),
    ],
)
def test_an_unknown_choice_is_named(key: str, value: str, builder) -> None:
    with pytest.raises(UserError, match=f"{key} is '{value}', which does not exist: choose"):
        builder(tiny_config(key, value))


def test_average_follows_its_formula_in_float64_and_takes_over_integers() -> None:
    torch.manual_seed(0)
    model = TinyNet()
    ema = ModelEma(model, decay=0.9)
    expected = {name: t.double().clone() for name, t in model.state_dict().items() if t.is_floating_point()}
    for _ in range(20):
        with torch.no_grad():
            for tensor in (*model.parameters(), model.running):
                tensor.add_(torch.randn_like(tensor))
            model.calls.add_(1)
        ema.update()
        for name in expected:
            expected[name] = 0.9 * expected[name] + 0.1 * model.state_dict()[name].double()
    for name, value in expected.items():
        torch.testing.assert_close(ema.model.state_dict()[name].double(), value, rtol=1e-6, atol=1e-6)
    assert ema.model.calls == 20
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
