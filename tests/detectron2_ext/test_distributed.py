"""Training in several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from exchange.config import REPOSITORY
from tests.detectron2_ext.engine.ten_steps import ten_steps
from tests.detectron2_ext.engine.tiny import TinyLoader, assert_equal_weights


def torchrun(module: str, script: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Two processes of ``script``, started by ``module``."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = ["--master-addr", "127.0.0.1", "--master-port", str(probe.getsockname()[1])]
    command = [sys.executable, "-m", module, "--nproc-per-node", "2", *place, str(script), *arguments]
    return subprocess.run(command, env=environment, text=True, timeout=240, **options)


def in_two_processes(work: str, folder: str) -> None:
    """Runs :func:`ten_steps`."""
    script = REPOSITORY / "tests/detectron2_ext/engine/ten_steps.py"
    torchrun("torch.distributed.run", script, work, folder, check=True)


@pytest.mark.parametrize("work", ["regression", "detector", "selection"])
def test_two_processes_train_as_one_does_with_the_same_batches(work: str, tmp_path: Path) -> None:
    in_two_processes(work, str(tmp_path / "two"))
    ten_steps(work, str(tmp_path / "one"))
    one, two = (
        torch.load(tmp_path / name / "model_0000009.pth", weights_only=True) for name in ("one", "two")
    )
    for part in ("model", "model_ema"):
        for name, tensor in one[part].items():
            if "running" not in name:  # a statistic of each process's own images
                torch.testing.assert_close(two[part][name], tensor, rtol=1e-5, atol=2e-7)
    ranks = [torch.load(tmp_path / f"two/rank{rank}.pth", weights_only=True) for rank in range(2)]
    assert_equal_weights(ranks[0]["shared"], ranks[1]["shared"])
    if work == "regression":  # its buffer is a statistic as batch norm's are
        for rank, weights in enumerate(ranks):
            running = 0.0
            for batch in TinyLoader(0, 10, rank=rank, world_size=2):
                running = 0.5 * running + float(torch.stack([r["image"] for r in batch]).double().mean())
            assert weights["own"]["running"].tolist() == pytest.approx([running] * 2, rel=1e-5)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for alone, together in zip(*lines, strict=True):
        assert together["total_loss"] == pytest.approx(alone["total_loss"], rel=1e-5)
        assert together["images_per_second"] * together["time"] == pytest.approx(4)  # of both


def test_two_processes_decide_together_as_one_does_and_remember_the_same(tmp_path: Path) -> None:
    in_two_processes("selection", str(tmp_path / "two"))
    ten_steps("selection", str(tmp_path / "one"))
    (one,), two = (
        [torch.load(tmp_path / of / f"rank{rank}.pth", weights_only=True) for rank in range(ranks)]
        for of, ranks in (("one", 1), ("two", 2))
    )
    for name in ("gradient", "scores"):
        assert torch.equal(two[0]["selection"][name], two[1]["selection"][name])
        torch.testing.assert_close(
            two[0]["selection"][name], one["selection"][name], rtol=1e-3, atol=1e-5, msg=name
        )
    scores = {d["iteration"]: (d["score"], d["accepted"]) for d in one["decisions"]}
    assert {accepted for _, accepted in scores.values()} == {True, False}
    assert len(two[0]["decisions"]) == len(one["decisions"]) == 40 and two[1]["decisions"] == []
    for decision in two[0]["decisions"]:
        score, accepted = scores[decision["iteration"]]
        assert decision["score"] == pytest.approx(score, rel=1e-3) and decision["accepted"] == accepted


def test_processes_that_decide_each_for_its_part_learn_one_network_and_share_one_cache(
    tmp_path: Path,
) -> None:
    in_two_processes("apart", str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2)]
    assert_equal_weights(ranks[0]["shared"], ranks[1]["shared"])
    for name in ("gradient", "scores"):
        assert torch.equal(ranks[0]["selection"][name], ranks[1]["selection"][name])
    assert ranks[0]["selection"]["updates"] == 10 and len(ranks[0]["selection"]["scores"]) == 20
    said = {(d["iteration"], d["process"]): d for d in ranks[0]["decisions"]}
    assert len(said) == 20
    different = [n for n in range(10) if said[n, 0]["accepted"] != said[n, 1]["accepted"]]
    assert different and all(said[n, 0]["score"] != said[n, 1]["score"] for n in range(10))


def test_a_signal_to_one_process_ends_all_after_the_same_iteration_with_a_checkpoint(tmp_path: Path) -> None:
    in_two_processes("stopped", str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2)]
    assert [weights["iterations"] for weights in ranks] == [4, 4]
    assert_equal_weights(ranks[0]["shared"], ranks[1]["shared"])
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"


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
    tmp_path: Path,
) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS_BESIDE_ANOTHER)
    os.mkfifo(tmp_path / "pipe")
    done = torchrun("detectron2_ext.engine.torchrun", script, str(tmp_path / "pipe"), capture_output=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: images/2.png does not decode: replace it"
    assert "stopped" not in done.stderr
