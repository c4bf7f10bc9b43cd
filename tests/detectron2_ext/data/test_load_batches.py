"""What becomes of a training whose loader processes fail or die."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detectron2_ext.data.loader import batches_in_order, load_batches
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError


class _Dying:
    """A data set whose worker dies, or meets an error of the user's."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2 and self._kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 2 and self._kind == "hears a terminal":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)
            return index
        if index == 2 and self._kind == "fails":
            raise RuntimeError("shapes do not match")
        if index == 2 and self._kind == "complains":
            raise UserError("images/2.png does not decode: replace it") from UserError("it is cut short")
        return index


def test_a_killed_loader_process_is_explained(python: str) -> None:
    # In a process of its own: torch reports the death by a signal, which may come long after this test.
    code = (
        "import torch\n"
        "from tests.detectron2_ext.data import test_load_batches\n"
        "loader = torch.utils.data.DataLoader(test_load_batches._Dying('dies'), num_workers=1)\n"
        "list(test_load_batches.load_batches(loader))"
    )
    repository = Path(__file__).resolve().parents[3]
    done = subprocess.run([python, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search("a process that loads images died .*lower DATALOADER.NUM_WORKERS", done.stderr)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), r"\[Errno 104\] Connection reset by peer"),
        (EOFError(), "EOFError"),
    ],
)
def test_a_connection_that_breaks_with_its_loader_process_is_explained(broken: Exception, said: str) -> None:
    def batches() -> Iterator[list[dict[str, Any]]]:
        raise broken
        yield []

    with pytest.raises(UserError, match=rf"loads images died \({said}\): .*lower DATALOADER\.NUM_WORKERS"):
        list(load_batches(batches()))


def test_a_failure_of_this_process_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(load_batches(_Dying("fails")[n] for n in range(4)))


def test_a_failure_in_a_loader_process_keeps_its_traceback() -> None:
    loader = torch.utils.data.DataLoader(_Dying("fails"), num_workers=1)
    with pytest.raises(RuntimeError, match=r"(?s)__getitem__.*shapes do not match"):
        list(load_batches(loader))


def test_an_error_of_the_user_in_a_loader_process_keeps_its_sentence() -> None:
    loader = torch.utils.data.DataLoader(_Dying("complains"), num_workers=1)
    with pytest.raises(UserError, match=r"^images/2\.png does not decode: replace it$"):
        list(load_batches(loader))


def test_a_loader_process_outlives_what_a_terminal_sends_to_all(listening) -> None:
    settings = ["DATALOADER.NUM_WORKERS", "1", "DATALOADER.PREFETCH_FACTOR", "3"]
    cfg = load_config(str(REPOSITORY / "configs/digits/NoPaste_digits.yaml"), settings)
    loader = batches_in_order(cfg, _Dying("hears a terminal"), range(4), 2)
    assert loader.prefetch_factor == 3
    assert list(load_batches(loader)) == [[0, 1], [2, 3]]


@pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="the end of another's process cannot be waited for here"
)
def test_a_loader_process_ends_with_a_training_that_is_killed_also_where_a_fork_server_started_it() -> None:
    code = """
import multiprocessing, os, signal
from detectron2_ext.data.loader import batches_in_order
from exchange.config import load_config
from tests.detectron2_ext.data.test_load_batches import _Dying
multiprocessing.set_start_method("forkserver")
cfg = load_config("configs/digits/NoPaste_digits.yaml", ["DATALOADER.NUM_WORKERS", "1"])
batches = iter(batches_in_order(cfg, _Dying("never"), range(2), 2))
next(batches)
print(multiprocessing.active_children()[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as training:
        loading = os.pidfd_open(int(training.stdout.readline()))
        assert training.wait() == -signal.SIGKILL
        assert select.select([loading], [], [], 60)[0]
    os.close(loading)
