"""One process for one work of a run."""

import os
import signal
import socket
import subprocess
import sys
from unittest.mock import MagicMock, Mock

import pytest
from filelock import Timeout

from exchange import locks
from exchange.config import REPOSITORY
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.locks import in_turn, only_one

HOLD = """
import signal, sys
from exchange.layout import RunLayout
from exchange.locks import only_one
with only_one(RunLayout(sys.argv[1]), "train"):
    print("there", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("root", ["{}/run", "s3://bucket{}/run"])
def test_the_second_is_refused_with_process_and_host_of_the_first_until_that_has_ended(root, tmp_path):
    layout = RunLayout(root.format(tmp_path))
    command = [sys.executable, "-c", HOLD, layout.root]
    first = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "there\n"
    said = f"process {first.pid} on {socket.gethostname()} since .* is at 'train' already: wait for it"
    with pytest.raises(UserError, match=said), only_one(layout, "train"):
        pytest.fail("two at once")
    with only_one(layout, "segment_0of1"), only_one(RunLayout(f"{layout.root}2"), "train"):
        pass  # other works, other runs
    first.send_signal(signal.SIGKILL)
    first.wait()
    with only_one(layout, "train"):
        pass


def test_what_fails_with_the_lock_gives_it_back_and_who_waited_for_it_holds_the_same(tmp_path):
    layout = RunLayout(str(tmp_path))
    for lock in (only_one, in_turn):
        with pytest.raises(KeyError), lock(layout, "train"):
            with pytest.raises(UserError, match="is at 'train' already"), only_one(layout, "train"):
                pytest.fail("two at once")
            raise KeyError
    with only_one(layout, "train"):
        assert sorted(os.listdir(tmp_path / "locks")) == ["train.lock", "train.owner"]


@pytest.mark.parametrize(("owner", "said"), [(b"process \xff", "process \ufffd"), (None, "a process")])
def test_the_second_is_refused_where_the_first_does_not_say_who_it_is_too(owner, said, tmp_path):
    layout, path = RunLayout(str(tmp_path)), tmp_path / "locks/train.owner"
    with only_one(layout, "train"):
        path.write_bytes(owner) if owner else path.unlink()
        with pytest.raises(UserError, match=f": {said} is at 'train' already"), only_one(layout, "train"):
            pytest.fail("two at once")


def test_who_has_to_wait_says_for_what(monkeypatch, tmp_path, caplog):
    layout, lock = RunLayout(str(tmp_path)), MagicMock()
    monkeypatch.setattr(locks, "FileLock", Mock(return_value=lock))
    caplog.set_level("INFO")
    for held, said in (
        (False, []),
        (True, [f"{tmp_path}: waiting for another process that is at 'evaluate'"]),
    ):
        lock.acquire.side_effect = [Timeout("evaluate.lock"), None] if held else None
        with in_turn(layout, "evaluate"):
            assert caplog.messages == said
    assert lock.release.call_count == 2
