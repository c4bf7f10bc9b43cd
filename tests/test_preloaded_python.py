"""The interpreter that tests start is like any other in what they look at."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.preloaded_python import preloaded_python

SCRIPT = """
import atexit, os, sys
from beside import NAME
atexit.register(print, "at exit")
print(NAME, __name__, sys.argv, os.getcwd(), os.environ["GIVEN"], sys.stdin.read())
sys.exit(sys.argv[1] if sys.argv[1:] else None)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["folder/script.py"],
        ["folder/script.py", "a sentence"],
        ["-m", "folder.module", "--one", "two"],
        ["-c", "import sys; print(sys.argv); sys.exit(3)", "-m"],
        ["-c", "import json; json.loads('{')"],
        ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
    ],
)
def test_it_writes_and_ends_as_the_one_that_it_stands_for(
    arguments: list[str], tmp_path: Path, python: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/script.py").write_text(SCRIPT)
    (tmp_path / "folder/beside.py").write_text("NAME = 'of the folder'")
    (tmp_path / "library").mkdir()
    (tmp_path / "library/beside.py").write_text("NAME = 'of the path'")
    (tmp_path / "folder/module.py").write_text(SCRIPT)
    environment = os.environ | {"GIVEN": "this", "PYTHONPATH": str(tmp_path / "library")}
    told = []
    for interpreter in (sys.executable, python):
        done = subprocess.run(
            [interpreter, *arguments],
            cwd=tmp_path,
            env=environment,
            input="typed",
            capture_output=True,
            text=True,
        )
        told.append((done.returncode, done.stdout, done.stderr.splitlines()[-1:]))
    assert told[0] == told[1]


def test_it_ends_with_its_block_though_a_process_forked_there_goes_on(tmp_path: Path) -> None:
    going_on, end = os.pipe()
    block = preloaded_python(tmp_path)
    block.__enter__()
    if not (child := os.fork()):
        os.close(end)
        os.read(going_on, 1)
        os._exit(0)
    leaving = threading.Thread(target=block.__exit__, args=(None, None, None), daemon=True)
    leaving.start()
    leaving.join(60)
    left = not leaving.is_alive()
    for descriptor in (end, going_on):
        os.close(descriptor)
    os.waitpid(child, 0)
    assert left
