"""What is told of a training between two looks at it."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine import metrics
from detectron2_ext.engine.metrics import LossWatch, Reporter, peak_memory_mib
from exchange.errors import UserError
from tests.detectron2_ext.engine.tiny import ALONE


def test_a_look_has_means_over_the_iterations_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "time", Mock(perf_counter=Mock(side_effect=[100.0, 108.0, 109.0])))
    watch = LossWatch(ALONE)
    for iteration, (mask, waited) in enumerate([(1.0, 0.5), (2.0, 1.0), (6.0, 3.0), (5.0, 1.0)], start=1):
        losses = {"mask": torch.tensor(mask), "box": torch.tensor(4 * mask)}
        watch.add(iteration, losses, ["a.png", "b.png"][: iteration % 2 + 1], waited)
    of_four = {"total_loss": 17.5, "mask": 3.5, "box": 14.0}
    assert watch.look() == of_four | {"time": 2.0, "data_time": 1.375, "images_per_second": 0.75}
    watch.add(5, {"mask": torch.tensor(0.5), "box": torch.tensor(0.25)}, ["a.png"], 0.125)
    of_one = {"total_loss": 0.75, "mask": 0.5, "box": 0.25}
    assert watch.look() == of_one | {"time": 1.0, "data_time": 0.125, "images_per_second": 1.0}


def test_losses_that_wait_on_a_gpu_are_told_with_their_own_iteration_and_images() -> None:
    watch = LossWatch(Ranks(0, 1, torch.device("cuda")))
    for iteration, box in enumerate([1.0, float("nan"), 2.0], start=7):
        losses = {"mask": torch.tensor(1.0), "box": torch.tensor(box)}
        watch.add(iteration, losses, [f"a{iteration}.png", f"b{iteration}.png"], 0.0)
    with pytest.raises(
        UserError, match=r"^box became not finite in iteration 8 on the images a8.png, b8.png"
    ):
        watch.look()


def test_the_bar_of_a_resumed_training_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter(str(tmp_path / "metrics.json"), 3, 12, "round 1", ALONE) as reporter:
        reporter.step()
    shown = capsys.readouterr().err
    assert "round 1:  25%" in shown and "3/12" in shown and "4/12" in shown


def test_memory_is_told_in_mib() -> None:
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    # The system counts what the parent held, too, where that was more.
    assert 0.9 < peak_memory_mib(torch.device("cpu")) / (int(kib) / 1024) < 100
