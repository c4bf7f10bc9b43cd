import errno
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from unittest.mock import Mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from exchange import files
from exchange.config import REPOSITORY
from exchange.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = str(tmp_path / "a" / "b.bin")
    files.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), files.atomic_writer(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert files.read_bytes(path) == b"old"
    assert os.listdir(tmp_path / "a") == ["b.bin"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("of a library"), "of a library"),
        (OSError(errno.EIO, "broken", "/other"), "[Errno 5] broken: '/other'"),
        (OSError(errno.EIO, "broken"), "[Errno 5] broken: '{}'"),
        *(
            (RuntimeError(f"so {sign} much"), "[Errno 28] No space left on device: '{}'")
            for sign in ("unexpected pos", "file write failed", "No space left on device")
        ),
    ],
)
def test_a_write_that_fails_says_why_and_where_also_if_its_folder_is_gone(tmp_path, error, told):
    path = tmp_path / "a" / "b.bin"
    with pytest.raises(OSError) as raised, files.atomic_writer(str(path)):
        shutil.rmtree(path.parent)
        raise error
    assert str(raised.value) == told.format(path)


@pytest.mark.parametrize("protocol", [("s3", "s3a"), ("gs", "gcs"), ("abfs", "az", "abfss"), "oci", "oss"])
def test_on_an_object_store_a_file_is_written_straight_to_its_place(protocol, monkeypatch):
    class Store(MemoryFileSystem):
        store, pseudo_dirs = {}, [""]
        mv = None  # a copy there, during which the target is not whole

    Store.protocol = protocol
    monkeypatch.setattr(files, "_locate", lambda path: (Store(skip_instance_cache=True), path))
    files.write_bytes("/run/x", b"abc")
    assert {path: file.getvalue() for path, file in Store.store.items()} == {"/run/x": b"abc"}


def test_on_another_file_system_a_file_is_moved_to_its_place_and_names_are_those_of_this_machine(
    monkeypatch,
):
    monkeypatch.setattr(MemoryFileSystem, "mv", moved := Mock())
    files.write_bytes("memory://moved/x", b"abc")
    assert moved.call_args.args[1] == "/moved/x"
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda *_, **__: ["/a/folder/", "/a/file"])
    assert files.list_dir("memory://a") == ["file", "folder"]
    found = {f"/a/{name}": {"size": 3, "mtime": 2.5} for name in ("01_a", "02_a")}  # whatever is asked for
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: found)
    assert files.entries("memory://a", "01") == {"01_a": files.Entry(3, 2.5)}


@pytest.mark.parametrize("durable", [(), (True,), (False,)])
def test_what_shall_outlive_a_power_failure_is_on_the_disk_before_it_is_in_its_place(
    tmp_path, durable, monkeypatch
):
    done, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("moved") or replace(*paths))
    monkeypatch.setattr(os, "sync", lambda: done.append("all"))
    files.write_bytes(str(tmp_path / "x"), b"abc", *durable)
    files.flush_all()
    assert done == [3] * (durable != (False,)) + ["moved", "all"]


def test_json_round_trips_on_a_local_path_and_on_another_file_system(tmp_path):
    for root in (str(tmp_path), "memory://exchange-test"):
        files.write_json(files.join(root, "x", "y.json"), {"a": [1, None]})
        assert files.join(root + "/", "x/./y.json") == f"{root}/x/y.json"
        assert files.read_json(files.join(root, "x", "y.json")) == {"a": [1, None]}
        assert files.list_dir(files.join(root, "x")) == ["y.json"]
    entry = files.Entry(len('{"a":[1,null]}'), (tmp_path / "x/y.json").stat().st_mtime)
    assert files.entries(str(tmp_path / "x"), "y") == files.entries(str(tmp_path / "x")) == {"y.json": entry}
    assert files.entries(str(tmp_path / "x"), "json") == files.entries(str(tmp_path)) == {}
    assert files.disk_usage(str(tmp_path)) == entry.size


def test_names_are_sorted_whatever_the_disk_s_order(tmp_path):
    names = [f"{number * 7 % 30:02}" for number in range(30)]
    for name in names:
        (tmp_path / name).touch()
    assert files.list_dir(str(tmp_path)) == sorted(names)
    assert files.names(str(tmp_path), "1") == {f"1{digit}" for digit in range(10)}


def test_of_a_folder_only_files_of_the_names_asked_for_are_looked_at_and_one_that_goes_meanwhile_is_none(
    tmp_path, monkeypatch
):
    for name in ("01_a", "01_b", "02_a"):
        (tmp_path / name).write_bytes(b"123")
    (tmp_path / "01_folder").mkdir()
    looked_at, scandir = [], os.scandir

    class File:
        def __init__(self, file):
            self.name, self.is_file, self._file = file.name, file.is_file, file

        def stat(self):
            looked_at.append(self.name)
            if self.name == "01_b":
                (tmp_path / "01_b").unlink()
            return os.stat(self._file.path)

    monkeypatch.setattr(os, "scandir", lambda path: nullcontext(map(File, scandir(path))))
    found = files.entries(str(tmp_path), "01_")
    assert {name: entry.size for name, entry in found.items()} == {"01_a": 3}
    assert found["01_a"].modified == (tmp_path / "01_a").stat().st_mtime
    assert sorted(looked_at) == ["01_a", "01_b"]
    assert files.entries(str(tmp_path / "nowhere")) == {}


def test_the_bytes_below_a_folder_are_added_up_without_asking_for_each_file(tmp_path, monkeypatch):
    roots = str(tmp_path), f"memory://{tmp_path.name}"
    for root in roots:
        for number in range(5):
            files.write_bytes(f"{root}/a/{number}/b", bytes(number))
    os.symlink("nowhere", tmp_path / "a" / "broken")
    monkeypatch.setattr(MemoryFileSystem, "info", Mock(side_effect=AssertionError))
    assert [files.disk_usage(root) for root in roots] == [10, 10]


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(str(tmp_path / "x.json"), float("nan"))
    assert os.listdir(tmp_path) == []


def test_what_is_gone_already_is_fine_and_one_that_cannot_be_removed_is_said(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "file").touch()
    for _ in range(2):
        files.remove_folder(str(tmp_path / "a"))
        files.remove(str(tmp_path / "file"))
        assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.remove_folder(str(tmp_path / "file/x"))


@pytest.mark.parametrize("part", ["../x", "/etc/passwd", "a/../../x", "..", "a\\..\\x", "a\0b"])
def test_no_path_leads_out_of_its_root(part):
    with pytest.raises(UserError, match="leads out"):
        files.join("/root", part)


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(UserError, match="missing.json"):
        files.read_json(str(tmp_path / "missing.json"))
    for text in ('{"a": [1,', '{"a": NaN}', "[" * 100_000):
        (tmp_path / "half.json").write_text(text)
        with pytest.raises(UserError, match=r"half\.json is not valid JSON"):
            files.read_json(str(tmp_path / "half.json"))


def test_a_file_that_is_rewritten_in_place_at_once_has_another_stamp(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    stamps = []
    for written in (10**18, 10**18 + 4_000_000):  # ns
        os.utime(tmp_path / "x", ns=(written, written))
        stamps.append(files.stamp(str(tmp_path / "x")))
    assert stamps[0] != stamps[1]


@pytest.mark.parametrize("size", [3, (1 << 23) + 1])
def test_the_digest_is_sha256_of_all_and_the_end_is_as_long_as_asked_for(tmp_path, size):
    data = (b"abc" * size)[:size]
    for path in (str(tmp_path / "x"), "memory://digest/x"):
        files.write_bytes(path, data)
        assert files.sha256(path) == hashlib.sha256(data).hexdigest()
        assert files.tail(path, 2) == data[-2:] and files.tail(path, size + 1) == data


@pytest.mark.parametrize(("offset", "length"), [(2, 1 << 50), (1 << 50, 1), (3, 1)])
def test_a_piece_beyond_the_end_is_refused_whatever_its_length(tmp_path, offset, length):
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(UserError, match="cut off"):
        files.read_range(str(tmp_path / "x"), offset, length)


@pytest.mark.parametrize("path", ["nobody://x", "driverless://x", "x" * 300, "folder", "file/x", "loop"])
def test_what_cannot_be_a_file_is_named(tmp_path, path):
    fsspec.register_implementation("driverless", "no_such_module.Driver", clobber=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for read in (files.read_bytes, lambda path: files.tail(path, 1)):
        with pytest.raises(UserError, match=path):
            read(path if "://" in path else str(tmp_path / path))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_file_that_the_disk_does_not_give_is_not_said_to_be_missing(tmp_path, monkeypatch, number):
    monkeypatch.setattr(files, "open", Mock(side_effect=OSError(number, "")), raising=False)
    with pytest.raises(OSError) as caught:
        files.read_bytes(str(tmp_path / "x.json"))
    assert caught.value.errno == number


WRITER = """
import sys
from exchange import files
with files.atomic_writer(sys.argv[1]) as file:
    file.write(b"whole")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    (tmp_path / "notes.tmp").touch()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    killed, living = (
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / name)], cwd=REPOSITORY, **pipes)
        for name in ("a.bin", "b.bin")
    )
    assert killed.stdout.readline() == living.stdout.readline() == b"writing\n"
    killed.kill()
    killed.wait()
    assert len(os.listdir(tmp_path)) == 3
    files.remove_leftovers(str(tmp_path))
    assert [name[:5] for name in sorted(os.listdir(tmp_path))] == ["b.bin", "notes"]
    living.communicate()
    assert living.returncode == 0 and (tmp_path / "b.bin").read_bytes() == b"whole"


def test_all_processes_of_a_machine_know_it_by_one_number():
    command = [sys.executable, "-c", "from exchange.files import _kernel; print(_kernel())"]
    assert subprocess.check_output(command, cwd=REPOSITORY, text=True).strip() == files._kernel()


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_another_machine_may_write_goes_only_from_a_disk_of_this_one(tmp_path, monkeypatch, on_disk):
    theirs = "a.bin.0123456789ab-01234567.tmp"
    for name in (theirs, f"b.bin.{files._kernel()}-01234567.tmp"):
        (tmp_path / name).touch()
    monkeypatch.setattr(files, "_on_disk", lambda path: on_disk)
    files.remove_leftovers(str(tmp_path))
    assert os.listdir(tmp_path) == [theirs] * (not on_disk)


@pytest.mark.parametrize(
    ("mount", "on_disk"),
    [
        ("8:17 / /run rw - ext4 /dev/x rw", True),
        ("8:17 / /run rw shared:1 master:2 - ext4 /dev/x rw", True),
        ("8:17 / /run rw shared:1 - nfs4 ext4:/x rw", False),
        ("17:8 / /run rw shared:1 - ext4 /dev/x rw", False),
        (None, False),  # not Linux
    ],
)
def test_a_disk_of_this_machine_is_known_by_its_mount(monkeypatch, mount, on_disk):
    device = os.makedev(8, 17)
    monkeypatch.setattr(files, "os", Mock(wraps=os, stat=lambda path: Mock(st_dev=device)))
    text = f"20 1 0:3 / / rw shared:9 - overlay overlay rw\n21 20 {mount}\n"
    opened = Mock(return_value=io.StringIO(text), side_effect=None if mount else FileNotFoundError)
    monkeypatch.setattr(files, "open", opened, raising=False)
    assert files._on_disk("/run/x") == on_disk


def test_a_writer_whose_file_is_removed_before_it_has_its_lock_starts_again(tmp_path, monkeypatch):
    def remove_first(file, how):
        monkeypatch.undo()
        files.remove_leftovers(str(tmp_path))
        fcntl.flock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with files.atomic_writer(str(tmp_path / "a.bin")) as file:
        file.write(b"whole")
        files.remove_leftovers(str(tmp_path))
    assert os.listdir(tmp_path) == ["a.bin"]
