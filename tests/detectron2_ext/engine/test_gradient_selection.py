"""Gradient selection: scores and decisions by their definition, and what is learnt from in the end."""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from detectron2_ext.engine.build_selection import _build_threshold, build_selection
from detectron2_ext.engine.loop import TrainingStep, seed_iteration
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling import build_model
from exchange.errors import UserError
from tests.detectron2_ext.engine.selected import Exact, batch_of, selecting_config, triple
from tests.detectron2_ext.engine.tiny import ALONE, assert_equal_weights, weights_of


def start(cfg: Any) -> tuple[TrainingState, TrainingStep]:
    torch.manual_seed(0)
    state = TrainingState.start(build_model(cfg).train(), cfg)
    return state, TrainingStep.from_config(state, ALONE, cfg)


def go(state: TrainingState, step: TrainingStep, batch: list[dict[str, Any]]) -> None:
    seed_iteration(3, state.iteration, 0)
    step(batch)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt())


@pytest.mark.parametrize(("threshold", "parts"), [(-0.5, 1), (0.9, 2)])
def test_score_and_decision_are_those_of_the_definition_in_float64(threshold: float, parts: int) -> None:
    mode = f"only_paste_{threshold}"
    state, step = start(selecting_config(MODEL__ACTIVE_ONCE_MODE=mode, SOLVER__ACCUMULATION_STEPS=parts))
    for predictor in state.model.roi_heads.box_predictor:  # fewer boxes show objects in later stages
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=1.2)
    batch = [triple(number, pasted=2) for number in range(3)]  # parts of two and of one
    exact = Exact(state.model)
    of_tests = exact.gradient_of_tests([record["test"] for record in batch])
    of_pasted = sum(
        len(part) * exact.gradient_of_pasted(part) for part in (batch[i::parts] for i in range(parts))
    )
    score = cosine(0.9 * of_tests, of_pasted)
    go(state, step, batch)
    assert state.cache is not None and 0.001 < abs(score) < 0.9
    assert [d.score for d in state.cache.decisions] == pytest.approx([score] * 6, rel=1e-3)
    assert [d.threshold for d in state.cache.decisions] == [threshold] * 6
    assert [d.accepted for d in state.cache.decisions] == [score >= threshold] * 6
    named = [name for record in batch for name in record["pasted_instances"]]
    assert [(d.instance, d.category_id) for d in state.cache.decisions] == named


@pytest.mark.parametrize(
    ("update", "saved", "steps"),
    [("MOMENTUM0.1", True, 10), ("AVERAGE", True, 3), ("AVERAGE", False, 2), ("MOMENTUM0", True, 2)],
)
def test_after_so_many_steps_the_cache_is_that_computed_outside(update: str, saved: bool, steps: int) -> None:
    moving = {"SOLVER__BASE_LR": 0.01, "SOLVER__WARMUP_ITERS": 0}
    state, step = start(
        selecting_config(MODEL__ACTIVE_GRAD_UPDATE=update, MODEL__ACTIVE_GRAD_SAVE=saved, **moving)
    )
    assert state.cache is not None
    expected = torch.zeros_like(state.cache.gradient, dtype=torch.float64)
    for iteration in range(steps):
        batch = batch_of(iteration)
        gradient = Exact(state.model).gradient_of_tests([record["test"] for record in batch])
        kept = {"AVERAGE": iteration / (iteration + 1), "MOMENTUM0.1": 0.1, "MOMENTUM0": 0}[update] * saved
        expected = kept * expected + (1 - kept) * gradient
        go(state, step, batch)
    difference = (state.cache.gradient - expected).norm() / expected.norm()
    assert state.cache.updates == steps and difference < 1e-3


MODES = [
    {"MODEL__ACTIVE_ONCE_MODE": "only_paste_{}"},
    {"MODEL__ACTIVE_ONCE_MODE": "only_paste_{}", "SOLVER__ACCUMULATION_STEPS": 2},
    {"MODEL__ACTIVE_ONCE_MODE": "only_paste_{}", "MODEL__ACTIVE_GRAD_LAYERS": ["cls_score"]},
    {"MODEL__ACTIVE_ONCE_MODE": "only_paste_{}", "SOLVER__AMP__ENABLED": True},
]


@pytest.mark.bits
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("accepts", [True, False])
def test_what_is_learnt_from_is_learnt_as_without_a_selection_bit_for_bit(
    mode: dict[str, Any], accepts: bool
) -> None:
    """With batch norm's statistics, random draws of boxes and classes, and the average."""
    mode = mode | {"MODEL__ACTIVE_ONCE_MODE": f"only_paste_{-1 if accepts else 2}"}
    selecting, plain = (
        start(selecting_config(exact=False, INPUT__ACTIVE_SELECT=selects, **mode))
        for selects in (True, False)
    )
    iterations = 1 if "SOLVER__AMP__ENABLED" in mode else 2  # which takes long on a processor
    for iteration in range(iterations):
        batch = batch_of(iteration)
        go(*selecting, batch)
        go(*plain, batch if accepts else [record["original"] for record in batch])
    assert_equal_weights(weights_of(selecting[0].model), weights_of(plain[0].model))
    assert selecting[0].ema and plain[0].ema
    assert_equal_weights(weights_of(selecting[0].ema.model), weights_of(plain[0].ema.model))
    assert {d.accepted for d in selecting[0].cache.decisions} == {accepts}
    assert len(selecting[0].cache.decisions) == 2 * iterations


def test_parts_of_a_batch_draw_one_after_the_other_and_what_is_learnt_from_draws_the_same_again() -> None:
    cfg = selecting_config(MODEL__ACTIVE_ONCE_MODE="only_paste_0", SOLVER__ACCUMULATION_STEPS=2)
    state, _ = start(cfg)
    select = build_selection(cfg, state.model, state.cache, state.scaler, ALONE)
    drawn = []

    def losses(*_: Any, **options: bool) -> dict[str, torch.Tensor]:
        drawn.append(float(torch.rand(())))
        return {"pasted_loss": sum(parameter.square().sum() for parameter in state.model.parameters())}

    select([record | {"test": None} for record in batch_of(0)], losses, 0)
    assert len(drawn) == 2
    assert [float(torch.rand(())) for _ in range(2)] == drawn


@pytest.mark.bits
@pytest.mark.parametrize("pasted", [1, 0])
def test_the_gradient_of_the_pasted_images_is_compared_with_that_of_the_originals(pasted: int) -> None:
    cfg = selecting_config(exact=False, MODEL__ACTIVE_MODE="paste_or_ori")
    state, step = start(cfg)
    before = deepcopy(state.model)
    batch = batch_of(0) if pasted else [record | {"original": record} for record in batch_of(0)]
    go(state, step, batch)
    assert state.cache is not None
    cosines = []
    for images in (batch, [record["original"] for record in batch]):
        network = deepcopy(before)
        seed_iteration(3, 0, 0)
        torch.stack(list(network(images).values())).sum().backward()
        learning = [p for p in network.parameters() if p.requires_grad]
        zeros = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        cosines.append(cosine(torch.cat([g.flatten() for g in zeros]), state.cache.gradient))
    (decision,) = {(d.score, d.threshold, d.accepted) for d in state.cache.decisions}
    assert decision[:2] == pytest.approx(cosines, abs=1e-5)
    assert decision[2] == (decision[0] >= decision[1])
    plain, plain_step = start(selecting_config(exact=False, INPUT__ACTIVE_SELECT=False))
    go(plain, plain_step, batch if decision[2] else [record["original"] for record in batch])
    assert_equal_weights(weights_of(state.model), weights_of(plain.model))


def test_originals_whose_gradient_has_no_direction_are_no_better_than_what_was_pasted() -> None:
    state, step = start(selecting_config(exact=False, MODEL__ACTIVE_MODE="paste_or_ori"))
    state.cache.cosine = Mock(side_effect=[-0.5, None])
    go(state, step, batch_of(0))
    assert {(d.score, d.threshold, d.accepted) for d in state.cache.decisions} == {(-0.5, -1.0, True)}


@pytest.mark.parametrize("layers", [["cls_score", "fc2"], ["backbone.fpn"]])
def test_gradients_of_some_layers_are_those_parts_of_the_whole(layers: list[str]) -> None:
    whole, some = (start(selecting_config(MODEL__ACTIVE_GRAD_LAYERS=those)) for those in ([], layers))
    for state, step in (whole, some):
        for predictor in state.model.roi_heads.box_predictor:  # so that the backbone's gradients count
            predictor.cls_score.weight.data *= 50
        go(state, step, batch_of(0))
    named = [(name, p) for name, p in whole[0].model.named_parameters() if p.requires_grad]
    pieces = whole[0].cache.gradient.split([p.numel() for _, p in named])
    chosen = [
        piece
        for (name, _), piece in zip(named, pieces, strict=True)
        if any(layer in name for layer in layers)
    ]
    assert 0 < len(chosen) < len(pieces)
    expected = torch.cat(chosen)
    atol = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(some[0].cache.gradient, expected, rtol=1e-4, atol=atol)


def test_of_several_iterations_one_looks_at_test_images_and_none_decides_before() -> None:
    state, step = start(selecting_config(MODEL__ACTIVE_TEST_EVERY=3))
    assert state.cache is not None
    updates = []
    for iteration in range(5):
        go(state, step, [triple(iteration, with_test=iteration > 1)])
        updates.append(state.cache.updates)
    assert updates == [0, 0, 0, 1, 1]
    assert [d.iteration for d in state.cache.decisions] == [3, 4]  # the first had no test image


def test_a_batch_without_pasted_objects_is_no_decision() -> None:
    state, step = start(selecting_config(MODEL__ACTIVE_ONCE_MODE="only_paste_0.9"))
    plain, plain_step = start(selecting_config(INPUT__ACTIVE_SELECT=False))
    batch = [triple(0), triple(1, pasted=0)][1:]
    go(state, step, batch)
    go(plain, plain_step, batch)
    assert state.cache is not None and state.cache.decisions == [] == list(state.cache.scores)
    assert_equal_weights(weights_of(state.model), weights_of(plain.model))


def test_scaled_losses_give_the_same_gradients() -> None:
    plain, scaled = (selecting_config() for _ in range(2))
    found = []
    for cfg, scale in ((plain, None), (scaled, 64.0)):
        state, step = start(cfg)
        if scale:
            state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            step = TrainingStep.from_config(state, ALONE, cfg)
        go(state, step, batch_of(0))
        assert state.cache is not None
        found.append((state.cache.gradient, [d.score for d in state.cache.decisions]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-9)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_gradients_that_are_not_finite_are_neither_remembered_nor_judged() -> None:
    cfg = selecting_config(MODEL__ACTIVE_ONCE_MODE="only_paste_0.9")
    state, _ = start(cfg)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    step = TrainingStep.from_config(state, ALONE, cfg)
    weight = state.model.roi_heads.box_predictor[0].cls_score.weight
    hook = weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights_of(state.model)
    go(state, step, batch_of(0))
    assert state.cache is not None
    assert state.cache.updates == 0 and state.cache.decisions == [] and not state.cache.gradient.any()
    assert_equal_weights(weights_of(state.model), before)  # the scaler skips the step
    hook.remove()
    go(state, step, batch_of(0))
    assert state.cache.updates == 1 and [d.accepted for d in state.cache.decisions] == [False] * 2


def test_the_threshold_from_the_queue_lets_a_share_pass_that_moves_over_the_training() -> None:
    cfg = selecting_config(MODEL__ACTIVE_ONCE_MODE="only_paste_dynamic_linear_0.2_0.8", SOLVER__MAX_ITER=100)
    state, step = start(cfg)
    assert state.cache is not None
    go(state, step, batch_of(0))
    assert [d.threshold for d in state.cache.decisions] == [0.0, 0.0]
    first = state.cache.scores[0]
    state.cache.scores.extend(n / 100 for n in range(100))
    assert first not in state.cache.scores and len(state.cache.scores) == 100
    state.iteration = 50
    go(state, step, batch_of(1))
    assert state.cache.decisions[-1].threshold == pytest.approx(0.495)  # half of 0, 0.01, …, 0.99
    state.cache.load_state_dict(state.cache.state_dict())  # resumed
    state.cache.scores.extend(n / 100 for n in range(100))
    of_one_share = _build_threshold(selecting_config(MODEL__ACTIVE_ONCE_MODE="only_paste_dynamic_0.2"))
    assert of_one_share(state.cache, 0.9) == pytest.approx(0.8 * 0.99)  # and stays
    state.iteration = 90
    go(state, step, batch_of(2))
    assert state.cache.decisions[-1].threshold == pytest.approx(0.26 * 0.99)  # 0.2 + 0.9 · 0.6 pass


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL__ACTIVE_GRAD_COMPARE", False, "MODEL.ACTIVE_GRAD_COMPARE is False, .* set it to True"),
        ("MODEL__ACTIVE_ONLY_GT_TEST", False, "MODEL.ACTIVE_ONLY_GT_TEST is False, .* set it to True"),
        ("MODEL__ACTIVE_FORWARD_ONCE", False, "MODEL.ACTIVE_FORWARD_ONCE is False, .* set it to True"),
        ("MODEL__ACTIVE_MODE", "paste_or_zero", "MODEL.ACTIVE_MODE .*paste_only, paste_or_ori"),
        ("MODEL__ACTIVE_ONCE_MODE", "only_gt", "MODEL.ACTIVE_ONCE_MODE is 'only_gt': choose only_paste_T"),
        ("MODEL__ACTIVE_ONCE_MODE", "only_paste_dynamic_2", "shares S from 0 to 1"),
        ("MODEL__ACTIVE_ONCE_MODE", "only_paste_dynamic_linear_0.5_1.5", "shares S from 0 to 1"),
        ("MODEL__ACTIVE_GRAD_UPDATE", "MOMENTUM1", "MODEL.ACTIVE_GRAD_UPDATE is 'MOMENTUM1': choose AVERAGE"),
        ("MODEL__ACTIVE_GRAD_LAYERS", ["fc2", "head7"], "MODEL.ACTIVE_GRAD_LAYERS has 'head7'"),
        ("MODEL__ACTIVE_TEST_EVERY", 0, "MODEL.ACTIVE_TEST_EVERY is 0: it is 1 or more"),
        ("MODEL__ACTIVE_TEST_BATCHSIZE", 0, "MODEL.ACTIVE_TEST_BATCHSIZE is 0: it is 1 or more"),
        ("INPUT__USE_COPY_METHOD", "none", "INPUT.USE_COPY_METHOD none pastes nothing"),
    ],
)
def test_what_a_selection_does_not_have_is_said_before_the_training(
    key: str, value: Any, message: str
) -> None:
    cfg = selecting_config(**{key: value})
    with pytest.raises(UserError, match=message):
        TrainingState.start(build_model(cfg), cfg)
