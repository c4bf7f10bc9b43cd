"""How a command ends."""

import errno
import logging
import os
import signal
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from exchange import files
from exchange.config import REPOSITORY
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout
from exchange.logs import log_to_run
from exchange.stopping import Stopped

ENDS = "from exchange.errors import run_cli; run_cli(lambda: {})"


@pytest.mark.parametrize("lines", [1, 1 << 16])
def test_nobody_who_reads_its_output_is_no_error(lines: int, python: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [python, "-c", ENDS.format(f"print('line\\n' * {lines})")]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO"])
def test_a_file_that_may_not_be_written_is_one_sentence_and_a_broken_disk_is_an_error_as_any_other(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(errno, name)
    with pytest.raises(OSError if name == "EIO" else SystemExit) as end:
        run_cli(Mock(side_effect=OSError(number, os.strerror(number), "/x")))
    if name != "EIO":
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(
            f"error: /x: {os.strerror(number)}: make room there, or give"
        )


def test_a_path_where_no_file_can_lie_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder/inside").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, named in (
        ("folder", "folder"),
        ("file/x", "file"),
        ("file/x/y", "file/x"),
        ("loop/x/y", "loop/x"),
        ("x" * 300, "x" * 300),
    ):
        with pytest.raises(SystemExit, match="2"):
            run_cli(lambda path=path: files.write_bytes(f"{tmp_path}/{path}", b""))
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path}/{named}") and said.endswith(": give another path\n")


@pytest.mark.parametrize("by_torchrun", [False, True])
def test_a_process_of_torchrun_s_that_is_stopped_says_nothing_as_another_may_have_failed(
    by_torchrun: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    with pytest.raises(SystemExit, match="143"):
        run_cli(Mock(side_effect=Stopped(signal.SIGTERM)))
    assert capsys.readouterr().err == ("" if by_torchrun else "stopped; the same command goes on\n")


def test_a_stop_of_which_the_interrupted_code_makes_another_error_is_a_stop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        try:
            raise Stopped(signal.SIGTERM)
        finally:
            raise AttributeError("what argparse tidies up was not there yet")

    with pytest.raises(SystemExit, match="143"):
        run_cli(main)
    assert capsys.readouterr().err == "stopped; the same command goes on\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            "/x: No space left on device: make room there",
        ),
        (UserError("/x could not be written"), "/x could not be written"),
    ],
)
def test_a_full_disk_after_a_stop_is_told(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error.__context__ = Stopped(signal.SIGTERM)
    with pytest.raises(SystemExit, match="2"):
        run_cli(Mock(side_effect=error))
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (SystemExit(), []),
        (SystemExit(3), ["ERROR SystemExit: 3"]),
        (ValueError("of\ntwo lines"), ["ERROR ValueError: of two lines"]),
        (Stopped(signal.SIGTERM), ["INFO Stopped: SIGTERM"]),
    ],
)
def test_the_last_line_of_its_log_is_what_ended_it_unless_all_is_well(
    error: BaseException, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.FileHandler(tmp_path / "log.txt")
    log.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [log])
    with pytest.raises(SystemExit if isinstance(error, Stopped) else type(error)):
        run_cli(Mock(side_effect=error))
    log.close()
    assert (tmp_path / "log.txt").read_text().splitlines() == lines


def test_a_stage_begins_its_log_behind_what_is_there_with_its_rank_if_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers := [])
    for root, rank in ((str(tmp_path), None), (str(tmp_path), 0), ("s3://bucket/run", None)):
        log_to_run(RunLayout(root), "train", rank)
    lines = (tmp_path / "logs/train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        f"INFO {rank}exchange.logs: started" for rank in ("", "rank 0 ")
    ]
    assert len(handlers) == 2
    for handler in handlers:
        handler.close()


def test_a_connection_that_breaks_is_an_error_as_any_other(python: str) -> None:
    fails = ENDS.format("(_ for _ in ()).throw(BrokenPipeError(32, 'Broken pipe'))")
    done = subprocess.run([python, "-c", fails], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")
