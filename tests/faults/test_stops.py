"""All three stages stopped by SIGTERM: nothing of them stays behind, and later calls end in the same files."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exchange.config import REPOSITORY
from tests.running import commands_with, needs_process_list
from tests.smallest_run import write_smallest_run

STOPS = int(os.environ.get("MRCA_STOPS", "0"))  # half a minute each, so by night: 20


def rounds(config: str, stop_at: int | None = None) -> tuple[int, list[str]]:
    """Runs ``rounds``; its exit code and what it wrote. Asked to end after ``stop_at`` lines, if there are as many."""
    command = [sys.executable, str(REPOSITORY / "tools/run_rounds.py"), "--config", config]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == stop_at:
            process.send_signal(signal.SIGTERM)
    return process.wait(), lines


def made(run: Path) -> dict[str, bytes]:
    """Images, masks, cut-outs, pool, checkpoints and feedback; not what tells times, nor what a person looks at."""
    patterns = ("pool/raw/*.png", "pool/segmented/*", "pool/cutouts/*", "pool/index/*", "pool/annotations/*")
    patterns += ("train/*.pth", "train/last_checkpoint", "feedback/*")
    found = {str(p.relative_to(run)): p.read_bytes() for pattern in patterns for p in run.glob(pattern)}
    return {name: re.sub(rb'"time":"[^"]+"', b"", content) for name, content in found.items()}


@pytest.mark.skipif(STOPS == 0, reason="takes minutes: MRCA_STOPS=20 stops all three stages twenty times")
@needs_process_list
def test_stopped_at_any_line_it_leaves_no_process_and_ends_in_the_same_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_smallest_run(str(run), tmp_path, MAX_ITER=6, ROUND_ITERS=3)
    code, lines = rounds(config)
    assert code == 0, "".join(lines)
    whole = made(run)
    assert {"train/model_0000005.pth", "feedback/rd01.json", "pool/annotations/rd01.done"} <= set(whole)
    shutil.rmtree(run)

    chance = random.Random(0)
    for _ in range(STOPS):
        code, said = rounds(config, stop_at=chance.randint(1, len(lines) * 2 // 3))
        assert commands_with(str(run)) == []
        if said[-1].startswith("2 rounds are done"):  # and nothing is left that the signal could stop
            assert code in (0, -signal.SIGTERM) and made(run) == whole
            shutil.rmtree(run)
            continue
        assert code == 128 + signal.SIGTERM, "".join(said)
        assert said[-1] == "stopped; the same command goes on\n"
        assert not [line for line in said if "Traceback" in line], "".join(said)
    code, said = rounds(config)
    assert code == 0, "".join(said)
    assert made(run) == whole
