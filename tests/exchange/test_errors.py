"""How a command ends."""

import os
import signal
import subprocess

import pytest

from exchange.config import REPOSITORY

ENDS = "from exchange.errors import run_cli; run_cli(lambda: {})"


@pytest.mark.parametrize("lines", [1, 1 << 16])
def test_nobody_who_reads_its_output_is_no_error(lines: int, python: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [python, "-c", ENDS.format(f"print('line\\n' * {lines})")]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_connection_that_breaks_is_an_error_as_any_other(python: str) -> None:
    fails = ENDS.format("(_ for _ in ()).throw(BrokenPipeError(32, 'Broken pipe'))")
    done = subprocess.run([python, "-c", fails], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")
