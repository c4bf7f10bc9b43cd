"""Stage 2 under faults: whatever happens, a later call ends in the pool of an undisturbed run."""

import errno
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import register_implementation

from diSegmenter import segmentAndFilter
from exchange import files
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout
from tests.diSegmenter.conftest import generate
from tests.faults.kills import KILLS, kill_repeatedly
from tests.faults.processes import segment_and_filter


def tree(layout: RunLayout) -> dict[str, bytes]:
    """Every file of the pool and of the pictures, but for what a killed writer left beside its target."""
    root = Path(layout.root)
    found = (path for folder in ("pool", "pictures") for path in (root / folder).rglob("*"))
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in found
        if path.is_file() and path.suffix != ".tmp"
    }


@pytest.fixture
def undisturbed(layout, config, tmp_path) -> dict[str, bytes]:
    """What a run makes of the same images if nothing happens; the run folder is as before then."""
    before = tmp_path / "before"
    shutil.copytree(layout.root, before)
    segment_and_filter(["--config", config])
    result = tree(layout)
    shutil.rmtree(layout.root)
    shutil.move(before, layout.root)
    return result


@pytest.mark.bits
def test_killed_twenty_times_it_ends_in_the_same_pool(layout, config, undisturbed, python):
    options = ["--config", config]
    assert kill_repeatedly(python, "segment_and_filter", options, furthest=12) >= KILLS
    assert tree(layout) == undisturbed
    assert not list(Path(layout.root).rglob("*.tmp"))  # a later start removed what killed ones left


def halve(path: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


DAMAGES: dict[str, Callable[[RunLayout], None]] = {
    "marker without data": lambda run: os.remove(run.pool_index(0)),
    "data without marker": lambda run: os.remove(run.annotations_done(0)),
    "outlines are gone": lambda run: os.remove(run.pool_outlines(0)),
    "index cut in half": lambda run: halve(run.pool_index(1)),
    "a cut-out is gone": lambda run: os.remove(run.cutout("00_0003_0000.png")),
    "masks are gone and no marker": lambda run: (
        os.remove(run.annotations_done(1)),
        [path.unlink() for path in Path(run.segmented("")).glob("01_*.png")],
    ),
    "a mask cut in half and no marker": lambda run: (
        os.remove(run.annotations_done(0)),
        halve(run.segmented("00_0007_0001.png")),
    ),
    "a cut-out cut in half and no marker": lambda run: (
        os.remove(run.annotations_done(0)),
        halve(run.cutout("00_0007_0001.png")),
    ),
    "what a killed writer left": lambda run: Path(run.pool_index(0) + ".0123abcd.tmp").write_bytes(b"half"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pool_is_made_good_by_the_next_call(damage, layout, config):
    segment_and_filter(["--config", config])
    whole = tree(layout)
    DAMAGES[damage](layout)
    segment_and_filter(["--config", config])
    assert tree(layout) == whole


def test_a_truncated_image_is_named_and_mended_by_stage_1(layout, config, undisturbed):
    path = layout.raw("00_0003_0000.png")
    whole = Path(path).read_bytes()
    for name in ("00_0003_0000.png", "00_0003_0002.png"):
        halve(layout.raw(name))
    with pytest.raises(UserError, match=r"2 images \(8%\) of round 0 do not decode .*00_0003_0002\.png"):
        segment_and_filter(["--config", config])
    assert not files.exists(layout.annotations_done(0))
    generate(layout, 0, 24)
    assert Path(path).read_bytes() == whole
    segment_and_filter(["--config", config])
    assert tree(layout) == undisturbed


class SmallDisk(MemoryFileSystem):
    """A file system in memory that is full after ``room`` bytes."""

    protocol = "smalldisk"
    store = {}
    pseudo_dirs = [""]
    room = 0
    lock = threading.Lock()

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if "w" in mode:
            write = file.write

            def bounded(data):
                with SmallDisk.lock:
                    if SmallDisk.room < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    SmallDisk.room -= len(data)
                return write(data)

            file.write = bounded
        return file


def call_as_a_person_does(options: list[str], capsys) -> tuple[int, str]:
    """Exit code and last line on stderr of the script."""
    saved, sys.argv = sys.argv, ["segmentAndFilter.py", *options]
    try:
        run_cli(segmentAndFilter.main)
        return 0, ""
    except SystemExit as end:
        return int(end.code), capsys.readouterr().err.splitlines()[-1]
    finally:
        sys.argv = saved


def test_a_full_disk_is_named_and_the_work_goes_on_when_there_is_room(layout, config, undisturbed, capsys):
    register_implementation("smalldisk", SmallDisk, clobber=True)
    full = RunLayout("smalldisk://run")
    options = ["--config", config, "OUTPUT_DIR", full.root]
    SmallDisk.room = 10**9
    for round_ in (0, 1):
        generate(full, round_, 24)
    refusals = 0
    for _ in range(100):
        SmallDisk.room = 4000
        code, line = call_as_a_person_does(options, capsys)
        if code == 0:
            break
        assert code == 2 and "No space left on device" in line and "smalldisk" in line
        assert not files.exists(full.annotations_done(1))
        refusals += 1
        if refusals == 5:
            SmallDisk.room = 10**9
            code, _ = call_as_a_person_does(options, capsys)
            assert code == 0
            break
    assert refusals == 5
    for name, data in undisturbed.items():
        assert files.read_bytes(files.join(full.root, name)) == data, name


def test_a_folder_that_may_not_be_written_is_named(layout, config, capsys, monkeypatch):
    def refuse(path, *arguments, **options):
        if str(path).endswith(".tmp") and "segmented" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *arguments, **options)

    real = open
    monkeypatch.setattr("builtins.open", refuse)
    code, line = call_as_a_person_does(["--config", config], capsys)
    monkeypatch.undo()
    assert code == 2 and line.startswith("error: ") and "segmented" in line and "Permission denied" in line
    assert not files.exists(layout.annotations_done(0))
