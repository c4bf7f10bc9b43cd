"""The training loop: exact resumption, checkpoints, and what stops it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine import checkpoints as checkpoints_module
from detectron2_ext.engine import loop
from detectron2_ext.engine import state as state_module
from detectron2_ext.engine.checkpoints import RunCheckpoints, read_checkpoint
from detectron2_ext.engine.loop import TrainingStep, seed_iteration, train
from detectron2_ext.engine.metrics import Reporter
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling.detector import half_type
from exchange import stopping
from exchange.errors import UserError
from exchange.stopping import Stopped
from tests.detectron2_ext.engine.tiny import (
    ALONE,
    TinyLoader,
    TinyNet,
    assert_equal_weights,
    tiny_config,
    weights_of,
)

_CFG = tiny_config(
    *("SOLVER.MAX_ITER", "20", "SOLVER.ROUND_ITERS", "10", "SOLVER.WARMUP_ITERS", "4"),
    *("SOLVER.BASE_LR", "0.01", "SOLVER.MODEL_EMA", "0.9"),
)


def _state(seed: int = 0) -> TrainingState:
    torch.manual_seed(seed)
    return TrainingState.start(TinyNet(), _CFG)


def _run(
    state: TrainingState,
    folder: Path,
    end: int,
    *,
    loader: Any = None,
    step: Any = None,
    period: int = 4,
    keep: int = 1,
    log_period: int = 3,
    ranks: Ranks = ALONE,
) -> RunCheckpoints:
    checkpoints = RunCheckpoints(str(folder), 10, keep)
    with Reporter(str(folder / "metrics.json"), state.iteration, end, "round 0", ALONE) as reporter:
        train(
            state,
            step or TrainingStep.from_config(state, ALONE, _CFG),
            loader or TinyLoader(state.iteration, end),
            end,
            checkpoints=checkpoints,
            checkpoint_period=period,
            reporter=reporter,
            log_period=log_period,
            seed=5,
            ranks=ranks,
        )
    return checkpoints


def _everything(state: TrainingState) -> dict[str, Tensor]:
    content = state.state_dict()
    weights = {f"model.{name}": tensor for name, tensor in content["model"].items()}
    weights |= {f"ema.{name}": tensor for name, tensor in content["model_ema"].items()}
    for number, slots in content["optimizer"]["state"].items():
        weights |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in slots.items()}
    weights["lr"] = torch.tensor(state.optimizer.param_groups[0]["lr"], dtype=torch.float64)
    return weights


@pytest.mark.bits
def test_a_resumed_training_equals_the_uninterrupted_one_bit_by_bit(tmp_path: Path) -> None:
    whole = _state()
    _run(whole, tmp_path / "whole", 20)

    first = _state()
    checkpoints = _run(first, tmp_path / "parts", 8)
    torch.manual_seed(123)  # whatever the other process drew in between
    second = TrainingState.start(TinyNet(), _CFG)
    latest = checkpoints.latest()
    assert latest is not None and latest.endswith("model_0000007.pth")
    second.load_state_dict(read_checkpoint(latest))
    assert second.iteration == 8
    _run(second, tmp_path / "parts", 20)

    assert_equal_weights(_everything(whole), _everything(second))
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    for timing in ("time", "data_time", "images_per_second", "eta_seconds", "memory_mib"):
        for line in (*lines[0], *lines[1]):
            assert line.pop(timing) >= 0
    assert [line["iteration"] for line in lines[0]] == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    assert lines[0] == lines[1]


@pytest.mark.bits
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_a_checkpoint_from_which_it_goes_on_as_if_uninterrupted(
    number: int, listening: None, tmp_path: Path
) -> None:
    whole = _state()
    _run(whole, tmp_path / "whole", 20)

    class Interrupted(TinyLoader):
        def __iter__(self) -> Iterator[Any]:
            for iteration, batch in enumerate(super().__iter__(), start=1):
                if iteration == 7:
                    os.kill(os.getpid(), number)
                yield batch

    first = _state()
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        _run(first, tmp_path / "parts", 20, loader=Interrupted(0, 20))
    assert first.iteration == 7 and (tmp_path / "parts/last_checkpoint").read_text() == "model_0000006.pth"
    second = TrainingState.start(TinyNet(), _CFG)
    second.load_state_dict(read_checkpoint(str(tmp_path / "parts/model_0000006.pth")))
    stopping._Requests.number = None  # as in the next process
    _run(second, tmp_path / "parts", 20)
    assert_equal_weights(_everything(whole), _everything(second))


def test_the_average_and_the_noise_matter_to_that_comparison(tmp_path: Path) -> None:
    state = _state()
    _run(state, tmp_path, 4)
    assert state.ema is not None
    assert not torch.equal(state.ema.model.head.weight, state.model.head.weight)
    draws = []
    for seed, iteration, rank in ((1, 2, 0), (1, 2, 0), (1, 3, 0), (2, 2, 0), (1, 2, 1)):
        seed_iteration(seed, iteration, rank)
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4


def test_each_process_of_a_training_draws_its_own_in_every_iteration(tmp_path: Path) -> None:
    drawn = []
    for rank in (0, 1):
        state = _state()

        def step(batch: Any, state: TrainingState = state) -> dict[str, Tensor]:
            drawn.append(float(torch.rand(())))
            state.iteration += 1
            return {"loss": torch.zeros(())}

        _run(state, tmp_path / str(rank), 3, step=step, ranks=Ranks(rank, 1, torch.device("cpu")))
    assert len(set(drawn)) == 6


def test_a_round_is_trained_with_the_seed_and_the_periods_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config("SEED", "3", "SOLVER.CHECKPOINT_PERIOD", "7", "SOLVER.LOG_PERIOD", "5")
    monkeypatch.setattr(loop, "train", train := Mock())
    context = {"checkpoints": Mock(), "folder": str(tmp_path), "title": "", "ranks": ALONE}
    loop.train_round(cfg, TrainingState.start(TinyNet(), cfg), TinyLoader(0, 4), 4, end=9, **context)
    asked = {"seed": 3, "checkpoint_period": 7, "log_period": 5}
    assert asked.items() <= train.call_args.kwargs.items() and train.call_args.args[3] == 4


def test_checkpoints_of_ends_of_rounds_stay_and_others_go(tmp_path: Path) -> None:
    state = _state()
    _run(state, tmp_path, 10, period=3, keep=4)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == [f"model_000000{n}.pth" for n in (2, 5, 8, 9)]  # fewer than may stay
    RunCheckpoints(str(tmp_path), 10, keep=1).prune(6)  # from which it went on
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == [f"model_000000{n}.pth" for n in (5, 8, 9)]
    checkpoints = _run(state, tmp_path, 20, period=3, keep=2)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["model_0000009.pth", "model_0000017.pth", "model_0000019.pth"]
    assert checkpoints.latest() == str(tmp_path / "model_0000019.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000019.pth"
    (tmp_path / "last_checkpoint").write_text("model_0000017.pth\n")  # by an editor
    assert checkpoints.latest() == str(tmp_path / "model_0000017.pth")


def test_periods_of_0_write_nothing_before_the_end(tmp_path: Path) -> None:
    _run(_state(), tmp_path, 10, period=0, keep=5, log_period=0)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000009.pth"]
    (line,) = (tmp_path / "metrics.json").read_text().splitlines()
    assert json.loads(line)["iteration"] == 10


def test_a_checkpoint_has_detectron2s_layout_and_the_settings(tmp_path: Path) -> None:
    state = _state()
    state.model.eval()  # as an evaluation leaves it
    path = _run(state, tmp_path, 4).latest()
    assert path is not None
    assert state.model.calls == 4  # it was in training mode
    content = torch.load(path, weights_only=True)
    assert content["iteration"] == 3
    assert_equal_weights(content["model"], weights_of(state.model))
    assert state.ema is not None
    assert_equal_weights(content["model_ema"], weights_of(state.ema.model))
    assert content["scheduler"]["last_epoch"] == 4
    assert "MODEL_EMA: 0.9" in content["settings"]


class _Poisoned(TinyLoader):
    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for iteration, batch in zip(self._range, super().__iter__(), strict=True):
            if iteration == 10:  # the second since a line of metrics, and another comes before the next
                batch[2]["target"] = torch.tensor(float("nan"))
            yield batch


def test_a_loss_that_is_not_finite_stops_and_names_loss_and_images(tmp_path: Path) -> None:
    state = _state()
    with pytest.raises(UserError, match=r"^loss_value became not finite in iteration 11 .*images/10_2\.png"):
        _run(state, tmp_path, 20, loader=_Poisoned(0, 20))
    assert state.iteration == 11  # at once
    saved = read_checkpoint(str(RunCheckpoints(str(tmp_path), 10, 1).latest()))
    assert saved["iteration"] == 7
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


@pytest.mark.parametrize("error", [OSError(28, "disk full"), RuntimeError("disk full\nin a line"), OSError()])
def test_a_disk_that_is_full_leaves_the_old_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _state()
    _run(state, tmp_path, 4)
    before = (tmp_path / "model_0000003.pth").read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"half a check")
        raise error

    monkeypatch.setattr(checkpoints_module.torch, "save", full)
    reason = r"model_0000007\.pth could not be written \((.*disk full.*|OSError)\): .*model_0000003\.pth"
    with pytest.raises(UserError, match=reason):
        _run(state, tmp_path, 8)
    assert (tmp_path / "model_0000003.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "metrics.json",
        "model_0000003.pth",
    ]


def test_without_an_average_the_weights_themselves_stand_for_the_state() -> None:
    records = [{"id": 3, "name": "cat", "synset": "cat.n.01"}, {"id": 8, "name": "cup", "image_count": 2}]
    state = TrainingState.start(TinyNet(), tiny_config("SOLVER.MODEL_EMA", "0"), records)
    assert state.evaluated is state.model and "model_ema" not in state.state_dict()
    assert state.state_dict()["categories"] == [{"id": 3, "name": "cat"}, {"id": 8, "name": "cup"}]


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_checkpoint_that_was_cut_short_is_named(size: int, tmp_path: Path) -> None:
    path = _run(_state(), tmp_path, 4).latest()
    assert path is not None
    Path(path).write_bytes(Path(path).read_bytes()[:size])
    with pytest.raises(
        UserError, match=r"model_0000003\.pth cannot be read .* write its name into last_checkpoint"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"model_0000003.pth", b"model_\xff\xfe.pth"])
def test_a_marker_without_its_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(UserError, match=r"last_checkpoint names .*model_.+\.pth, which does not exist"):
        RunCheckpoints(str(tmp_path), 10, 1).latest()


@pytest.mark.parametrize("number", [3, 7, 9])
def test_a_batch_taken_in_parts_has_the_gradient_of_the_whole(number: int) -> None:
    whole, parts = _state(), _state()
    returned: list[dict[str, Tensor]] = []
    for state, accumulation in ((whole, 1), (parts, number)):
        state.model._noise = 0.0
        step = TrainingStep(state, ALONE, lambda parameters: None, accumulation, None)
        losses = step(next(iter(TinyLoader(0, 1, batch_size=7))))
        returned.append(losses)
    assert list(returned[0]) == ["loss_value", "loss_cls"]
    torch.testing.assert_close(returned[1], returned[0])
    for name, parameter in whole.model.named_parameters():
        other = parts.model.get_parameter(name)
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number_format", ["", "bfloat16", "float16"])
def test_a_step_goes_down_the_clipped_gradient_and_the_average_follows(number_format: str) -> None:
    cfg = tiny_config(
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", "0.0", "SOLVER.WEIGHT_DECAY", "0.0"),
        *("SOLVER.BASE_LR", "0.1", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MODEL_EMA", "0.75"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.1", "SOLVER.AMP.ENABLED", str(bool(number_format))),
        *("SOLVER.AMP.DTYPE", number_format or "float16"),
    )
    torch.manual_seed(0)
    state = TrainingState.start(TinyNet(noise=0.0), cfg)
    if number_format == "float16":  # resumes with another scale: the first is too large for these gradients
        saved = state.state_dict()
        state.load_state_dict(saved | {"scaler": saved["scaler"] | {"scale": 64.0}})
    (batch,) = TinyLoader(0, 1)
    before = {name: weight.double() for name, weight in weights_of(state.model).items()}
    exact = deepcopy(state.model).double()
    exact_batch = [record | {key: record[key].double() for key in ("image", "target")} for record in batch]
    torch.stack(list(exact(exact_batch).values())).sum().backward()
    seen: list[torch.dtype] = []
    state.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    TrainingStep.from_config(state, ALONE, cfg)(batch)
    assert seen == [getattr(torch, number_format or "float32")]
    assert state.scaler.get_scale() == (64.0 if number_format == "float16" else 1.0)
    tolerance = 0.01 if number_format else 1e-6
    largest = 0.0
    for name, weight in state.model.named_parameters():
        assert weight.dtype == torch.float32
        gradient = exact.get_parameter(name).grad
        largest = max(largest, float(gradient.abs().max()))
        moved = (before[name] - weight.detach().double()) / 0.1
        torch.testing.assert_close(moved, gradient.clamp(-0.1, 0.1), rtol=tolerance, atol=tolerance)
        average = 0.75 * before[name] + 0.25 * weight.detach().double()
        torch.testing.assert_close(state.ema.model.get_parameter(name).double(), average, rtol=0, atol=1e-7)
    assert largest > 0.15


@pytest.mark.parametrize("setting", ["FP16", "SOLVER.AMP.ENABLED"])
def test_in_float16_a_step_of_infinite_gradients_is_skipped_and_its_smaller_scale_resumed(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(setting, "True", "SOLVER.AMP.DTYPE", "float16")
    monkeypatch.setattr(state_module, "half_type", lambda device: torch.float16)  # as on a GPU
    state = TrainingState.start(TinyNet(noise=0.0), cfg)
    saved = state.state_dict()
    state.load_state_dict(saved | {"scaler": saved["scaler"] | {"scale": 64.0}})
    hook = state.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights_of(state.model)
    (batch,) = TinyLoader(0, 1)
    step = TrainingStep.from_config(state, ALONE, cfg)
    step(batch)
    for name, weight in state.model.named_parameters():
        assert torch.equal(weight, before[name]), name
    assert (state.iteration, state.scaler.get_scale()) == (1, 32.0)
    resumed = TrainingState.start(TinyNet(noise=0.0), cfg)
    resumed.load_state_dict(state.state_dict())
    assert resumed.scaler.get_scale() == 32.0
    hook.remove()
    step(batch)
    assert not torch.equal(state.model.head.weight, before["head.weight"])


def test_fp16_is_float16_with_scaled_losses_on_a_gpu_and_bfloat16_without_on_a_cpu() -> None:
    assert half_type(torch.device("cuda", 1)) == torch.float16
    assert half_type(torch.device("cpu")) == torch.bfloat16
    assert not TrainingState.start(TinyNet(), tiny_config("FP16", "True")).scaler.is_enabled()


def test_metrics_are_means_since_the_line_before_with_the_learning_rate_of_their_iteration(
    tmp_path: Path,
) -> None:
    state = _state()
    rates: list[float] = []
    values = iter([1.0, 2.0, 6.0, 4.0, 8.0])

    def step(batch: Any) -> dict[str, Tensor]:
        rates.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        state.schedule.step()
        state.iteration += 1
        value = torch.tensor(next(values))
        return {"loss_value": value, "loss_cls": 10 * value}

    _run(state, tmp_path, 5, step=step, period=5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 5]
    assert [line["loss_value"] for line in lines] == [3.0, 6.0]
    assert [line["total_loss"] for line in lines] == [33.0, 66.0]
    assert [line["lr"] for line in lines] == [rates[2], rates[4]] and len(set(rates)) == 5
    for line in lines:
        assert line["images_per_second"] * line["time"] == pytest.approx(4)
        assert line["eta_seconds"] == pytest.approx(line["time"] * (5 - line["iteration"]))
