"""Training in several processes."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.api import SignalException

from detectron2_ext.distributed import Ranks, join_ranks, named_device
from detectron2_ext.engine import torchrun as torchrun_module
from exchange.config import REPOSITORY
from exchange.errors import STOPPED, UserError
from exchange.stopping import Stopped
from tests.detectron2_ext.engine.ten_steps import ten_steps
from tests.detectron2_ext.engine.tiny import TinyLoader, assert_equal_weights

ALIKE = ("regression", "detector", "selection")


def torchrun(
    python: str, module: str, script: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Two processes of ``script``, started by ``module``."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = ["--master-addr", "127.0.0.1", "--master-port", str(probe.getsockname()[1])]
    command = [python, "-m", module, "--nproc-per-node", "2", *place, str(script), *arguments]
    return subprocess.run(command, env=environment, text=True, timeout=240, **options)


def stopped_by_torchrun() -> None:
    raise SignalException("Process 7 got signal: 15", signal.SIGTERM)


def stopped_before_torchrun_listens() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("main", "code"), [(stopped_by_torchrun, 143), (stopped_before_torchrun_listens, 130)]
)
@pytest.mark.usefixtures("listening")
def test_torchrun_ends_as_a_command_that_a_signal_stopped(
    main: Callable[[], None],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.distributed.run, "main", main)
    with pytest.raises(SystemExit) as ended:
        torchrun_module.run()
    assert ended.value.code == code and capsys.readouterr().err == STOPPED


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:0", "meta"])
def test_a_device_that_is_not_here_is_named_with_the_choices(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.device | None] = [None]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found[0])
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(UserError, match=f"no device '{name}' here: choose cpu .MODEL.DEVICE"):
        join_ranks(name).__enter__()
    assert named_device("cpu") == named_device("") == torch.device("cpu")
    found[0] = torch.device("mps")
    assert named_device("mps") == torch.device("mps") and named_device("") == torch.device("cpu")
    with pytest.raises(UserError, match=f"no device '{name}' here: choose cpu or mps .MODEL.DEVICE"):
        named_device(name)
    found[0] = torch.device("cuda")
    assert named_device("") == torch.device("cuda") and named_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="no device 'cuda:2' here: choose cpu or cuda"):
        named_device("cuda:2")


def test_a_process_takes_the_gpu_of_its_number_on_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen := Mock())
    monkeypatch.setattr(torch.distributed, "init_process_group", joined := Mock())
    monkeypatch.setattr(torch.distributed, "destroy_process_group", Mock())
    with join_ranks("cuda") as ranks:
        assert ranks == Ranks(5, 8, torch.device("cuda", 1))
    chosen.assert_called_once_with(ranks.device)
    # what the first process does alone, or the stages before it, may take a day
    assert joined.call_args.kwargs["timeout"] > datetime.timedelta(days=1)


def test_processes_wait_for_each_other_on_every_device_and_one_alone_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", wait := Mock())
    for world_size, device in ((1, "cpu"), (2, "cpu"), (2, "cuda")):
        Ranks(0, world_size, torch.device(device)).barrier()
        assert wait.call_count == world_size - 1
        wait.reset_mock()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, python: str) -> Path:
    """The works of :mod:`ten_steps`, each in a folder of its name, by two processes that start once for all."""
    folder = tmp_path_factory.mktemp("two")
    script = REPOSITORY / "tests/detectron2_ext/engine/ten_steps.py"
    torchrun(python, "torch.distributed.run", script, str(folder), check=True)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by this process alone, as far as it is to come out alike."""
    folder = tmp_path_factory.mktemp("one")
    for work in ALIKE:
        ten_steps(work, str(folder / work), Ranks(0, 1, torch.device("cpu")))
    return folder


def of_each_rank(folder: Path) -> list[Any]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("rank*.pth"))]


@pytest.mark.parametrize("work", ALIKE)
def test_two_processes_train_as_one_does_with_the_same_batches(work: str, one: Path, two: Path) -> None:
    alone, together = (
        torch.load(folder / work / "model_0000009.pth", weights_only=True) for folder in (one, two)
    )
    for part in ("model", "model_ema"):
        for name, tensor in alone[part].items():
            if "running" not in name:  # a statistic of each process's own images
                torch.testing.assert_close(together[part][name], tensor, rtol=1e-9, atol=1e-12)
    ranks = of_each_rank(two / work)
    assert_equal_weights(ranks[0]["shared"], ranks[1]["shared"])
    if work == "regression":  # its buffer is a statistic as batch norm's are
        for rank, weights in enumerate(ranks):
            running = 0.0
            for batch in TinyLoader(0, 10, rank=rank, world_size=2):
                for record in batch:  # each a part of its own
                    running = 0.5 * running + float(record["image"].double().mean())
            assert weights["own"]["running"].tolist() == pytest.approx([running] * 2, rel=1e-5)
    lines = [
        [json.loads(line) for line in (folder / work / "metrics.json").read_text().splitlines()]
        for folder in (one, two)
    ]
    for expected, found in zip(*lines, strict=True):
        assert found["total_loss"] == pytest.approx(expected["total_loss"], rel=1e-9)
        assert found["images_per_second"] * found["time"] == pytest.approx(4)  # of both


def test_two_processes_decide_together_as_one_does_and_remember_the_same(one: Path, two: Path) -> None:
    (alone,), (first, second) = (of_each_rank(folder / "selection") for folder in (one, two))
    for name in ("gradient", "scores"):
        assert torch.equal(first["selection"][name], second["selection"][name])
        torch.testing.assert_close(
            first["selection"][name], alone["selection"][name], rtol=1e-9, atol=1e-12, msg=name
        )
    scores = {d["iteration"]: (d["score"], d["accepted"]) for d in alone["decisions"]}
    assert {accepted for _, accepted in scores.values()} == {True, False}
    assert len(first["decisions"]) == len(alone["decisions"]) == 40 and second["decisions"] == []
    for decision in first["decisions"]:
        score, accepted = scores[decision["iteration"]]
        assert decision["score"] == pytest.approx(score, rel=1e-9) and decision["accepted"] == accepted


def test_processes_that_decide_each_for_its_part_learn_one_network_and_share_one_cache(two: Path) -> None:
    ranks = of_each_rank(two / "apart")
    assert_equal_weights(ranks[0]["shared"], ranks[1]["shared"])
    for name in ("gradient", "scores"):
        assert torch.equal(ranks[0]["selection"][name], ranks[1]["selection"][name])
    assert ranks[0]["selection"]["updates"] == 10 and len(ranks[0]["selection"]["scores"]) == 20
    said = {(d["iteration"], d["process"]): d for d in ranks[0]["decisions"]}
    assert len(said) == 20
    different = [n for n in range(10) if said[n, 0]["accepted"] != said[n, 1]["accepted"]]
    assert different and all(said[n, 0]["score"] != said[n, 1]["score"] for n in range(10))


def test_processes_that_go_on_decide_as_if_they_had_not_stopped(two: Path) -> None:
    whole, resumed = (of_each_rank(two / work) for work in ("apart", "resumed"))
    for rank in range(2):
        assert_equal_weights(whole[rank]["shared"], resumed[rank]["shared"])
        for name in ("gradient", "scores"):
            assert torch.equal(whole[rank]["selection"][name], resumed[rank]["selection"][name])
    assert [d for d in whole[0]["decisions"] if d["iteration"] >= 5] == resumed[0]["decisions"]


def test_a_signal_to_one_process_ends_all_after_the_same_iteration_with_a_checkpoint(two: Path) -> None:
    ranks = of_each_rank(two / "stopped")
    assert [weights["iterations"] for weights in ranks] == [4, 4]
    assert_equal_weights(ranks[0]["shared"], ranks[1]["shared"])
    assert (two / "stopped/last_checkpoint").read_text() == "model_0000003.pth"


FAILS_BESIDE_ANOTHER = """
import os, signal, sys
from exchange.errors import UserError, run_cli

def main():
    pipe = sys.argv[1]
    if os.environ["RANK"] == "0":
        open(pipe, "w").close()  # when the other listens
        signal.pause()  # until torchrun ends it, since that one failed
    open(pipe).read()
    raise UserError("images/2.png does not decode: replace it")

run_cli(main)
"""


def test_the_last_line_is_what_failed_and_not_that_the_other_process_was_stopped_for_it(
    tmp_path: Path, python: str
) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS_BESIDE_ANOTHER)
    os.mkfifo(tmp_path / "pipe")
    module, pipe = "detectron2_ext.engine.torchrun", str(tmp_path / "pipe")
    done = torchrun(python, module, script, pipe, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: images/2.png does not decode: replace it"
    assert "stopped" not in done.stderr


def test_a_process_whose_partner_is_gone_lets_that_one_be_the_first_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", Mock())
    monkeypatch.setattr(torch.distributed, "destroy_process_group", leave := Mock())
    with pytest.raises(Stopped) as stopped, join_ranks("cpu"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    assert slept == [60.0] and stopped.value.number == signal.SIGTERM
    with pytest.raises(RuntimeError, match="out of memory"), join_ranks("cpu"):
        raise RuntimeError("out of memory")
    assert leave.call_count == 2


REFUSED_ALONE = """
from detectron2_ext.distributed import join_ranks
from exchange.errors import UserError, run_cli

def main():
    with join_ranks("cpu") as ranks:
        ranks.barrier()
        if ranks.is_first:
            raise UserError("another training is at it: wait for it")
        ranks.barrier()

run_cli(main)
"""


def test_a_process_that_waits_for_one_that_failed_ends_without_a_trace_of_its_own(
    tmp_path: Path, python: str
) -> None:
    script = tmp_path / "refused.py"
    script.write_text(REFUSED_ALONE)
    done = torchrun(python, "detectron2_ext.engine.torchrun", script, capture_output=True)
    assert done.returncode == 2
    assert "error: another training is at it: wait for it" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
