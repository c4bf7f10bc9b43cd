"""Files that appear whole or not at all, on any fsspec file system (a plain path is a local one)."""

import errno
import fcntl
import functools
import hashlib
import json
import logging
import mmap
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from exchange.errors import UserError

_log = logging.getLogger(__name__)
_BESIDE = re.compile(r".+\.([0-9a-f]{12})-[0-9a-f]{8}\.tmp")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"}
_SMALL = 8 << 20  # bytes of an object that is fetched in one go
# How torch, whose archive writer does not pass on what the file said, reports a full disk.
_FULL = ("unexpected pos", "file write failed", os.strerror(errno.ENOSPC))
# Only the machine that has them mounted writes there, so that its locks tell all.
_DISKS = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs", "zfs"}


def join(root: str, *parts: str) -> str:
    """Joins a path below ``root``; raises UserError for a part that would lead out of it."""
    below = posixpath.normpath(posixpath.join(*parts))
    if below.startswith(("/", "..")) or "\\" in below or "\0" in below:
        raise UserError(
            f"the path {'/'.join(parts)!r} leads out of {root}: use a relative path without '..' and '\\'"
        )
    return f"{root.rstrip('/')}/{below}"


def _locate(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of ``path``, and its name there.

    Nothing is remembered of what lies in a folder: other processes write there, and an object store's driver
    would never see the marker that is waited for.
    """
    try:
        filesystem, local = fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ValueError, ImportError) as error:  # a protocol that nobody knows, or without its driver
        raise UserError(f"{path} cannot be reached ({error}): correct the path, or install that") from error
    return filesystem, local


def exists(path: str) -> bool:
    """Whether ``path`` names a file or a folder."""
    filesystem, local = _locate(path)
    return bool(filesystem.exists(local))


def make_dirs(path: str) -> None:
    """Makes the folder ``path`` and those above it; a folder that is there already is fine."""
    filesystem, local = _locate(path)
    filesystem.makedirs(local, exist_ok=True)


def stamp(path: str) -> dict[str, Any] | None:
    """Size of a file and what changes when its content does; None where the file system cannot tell.

    Raises UserError where there is no such file.
    """
    filesystem, local = _locate(path)
    with _missing_is_told(path):
        if isinstance(filesystem, LocalFileSystem):
            status = os.stat(local)
            return {"size": status.st_size, "mtime": status.st_mtime_ns, "inode": status.st_ino}
        info = filesystem.info(local)
    known = {key: str(info[key]) for key in ("ETag", "etag", "md5Hash", "VersionId") if info.get(key)}
    return {"size": int(info["size"]), **known} if known else None


def list_dir(path: str) -> list[str]:
    """Sorted names (not paths) of what lies in the folder ``path``; empty if there is no such folder."""
    filesystem, local = _locate(path)
    try:
        names = filesystem.ls(local, detail=False)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(str(name).rstrip("/")) for name in names)


def matches(folder: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The names in ``folder`` that are as ``pattern`` says, as what it finds in them, sorted."""
    return [match for name in list_dir(folder) if (match := pattern.fullmatch(name))]


def names(folder: str, prefix: str) -> set[str]:
    """The names in ``folder`` that begin with ``prefix``; an object store looks up no others."""
    if _is_object_store(_locate(folder)[0]):
        return set(entries(folder, prefix))
    return {name for name in list_dir(folder) if name.startswith(prefix)}


@dataclass(frozen=True)
class Entry:
    """A file in a folder: its bytes, and when it was written (seconds since 1970)."""

    size: int
    modified: float


def entries(folder: str, prefix: str = "") -> dict[str, Entry]:
    """The files in ``folder`` whose names begin with ``prefix``, by name; an object store looks up no others."""
    filesystem, local = _locate(folder)
    if isinstance(filesystem, LocalFileSystem):
        return _local_entries(local, prefix)
    found = {}
    for path, info in filesystem.find(local, maxdepth=1, detail=True, prefix=prefix).items():
        name = posixpath.basename(path)
        if name.startswith(prefix):
            modified = info["mtime"] if "mtime" in info else info["LastModified"].timestamp()
            found[name] = Entry(info["size"], modified)
    return found


def _local_entries(folder: str, prefix: str) -> dict[str, Entry]:
    """The same of a folder of this machine: files of other names are not looked at, and what goes meanwhile is none."""
    found = {}
    with suppress(FileNotFoundError), os.scandir(folder) as there:
        for file in there:
            with suppress(FileNotFoundError):
                if file.name.startswith(prefix) and file.is_file():
                    status = file.stat()
                    found[file.name] = Entry(status.st_size, status.st_mtime)
    return found


def tail(path: str, length: int) -> bytes:
    """The last ``length`` bytes of ``path``, or all if it has fewer; raises UserError where there is no such file."""
    with open_to_read(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - length, 0))
        return file.read(length)


def disk_usage(folder: str) -> int:
    """Bytes of all files below ``folder``, by the listings: to ask for each by its name is a request in a bucket."""
    filesystem, local = _locate(folder)
    if isinstance(filesystem, LocalFileSystem):
        total = 0
        for below, _, there in os.walk(local):
            for name in there:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(below, name)).st_size
        return total
    return sum(int(info["size"]) for info in filesystem.find(local, detail=True).values())


@contextmanager
def atomic_writer(path: str, durable: bool = True) -> Iterator[BinaryIO]:
    """Yields a binary file whose content appears at ``path`` when the block ends well, and never otherwise.

    Written beside the target, flushed to the disk, then renamed over it: a reader sees the old file or the
    new one, and so does whoever looks after a crash. Without ``durable`` a power failure (not a killed process)
    may leave it cut off until :func:`flush_all` was called: for many small files whose wholeness is checked. In an
    object store, where an object appears when its upload ends, it is written straight to its place.
    """
    filesystem, target = _locate(path)
    if _is_object_store(filesystem):
        with _upload(filesystem, target) as file:
            yield file
        return
    beside = f"{target}.{_kernel()}-{uuid.uuid4().hex[:8]}.tmp"
    filesystem.makedirs(posixpath.dirname(target), exist_ok=True)
    local = isinstance(filesystem, LocalFileSystem)
    try:
        with _alive(beside) if local else nullcontext():
            with open(beside, "wb") if local else filesystem.open(beside, "wb") as file:
                yield file
                file.flush()
                if local and durable:
                    os.fsync(file.fileno())
            if local:
                os.replace(beside, target)
            else:
                filesystem.mv(beside, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = path  # "no space left on device" comes without saying where
        with suppress(FileNotFoundError):
            filesystem.rm_file(beside)
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path) from error
        raise


def _is_object_store(filesystem: AbstractFileSystem) -> bool:
    protocol = filesystem.protocol
    return not _OBJECT_STORES.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)


@contextmanager
def _upload(filesystem: AbstractFileSystem, target: str) -> Iterator[BinaryIO]:
    file = filesystem.open(target, "wb")
    try:
        yield file
        file.close()
    except BaseException:
        file.closed = True  # or it would end the upload when it is forgotten
        file.discard()
        raise


def remove_leftovers(folder: str) -> None:
    """Removes from ``folder``, not from those below, what killed writers left beside their targets.

    A file stays while a process writes it, here or on another machine, and where nobody can tell: see
    docs/reliability.md. Nothing is done where ``folder`` is not on a local or mounted file system.
    """
    filesystem, local = _locate(folder)
    if not isinstance(filesystem, LocalFileSystem):
        return
    for match in matches(folder, _BESIDE):
        path = os.path.join(local, match[0])
        if match[1] == _kernel() or _on_disk(local):
            try:
                with open(path, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.remove(path)  # with the lock held: a writer that is about to take it starts again
            except OSError as error:
                _log.debug("%s stays: %s", path, error)


@contextmanager
def _alive(path: str) -> Iterator[None]:
    """Holds a lock on the new file ``path``: what tells others, until this process ends, that it is written."""
    while True:
        with open(path, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # a file system without locks: there, nobody removes it either
                _log.debug("no lock on %s: %s", path, error)
            if os.path.exists(path):  # else it was removed between the two, since it had no lock yet
                yield
                return


@functools.cache
def _kernel() -> str:
    """Twelve digits for the running operating system, the one whose locks its processes share."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().replace("-", "")[:12]
    except FileNotFoundError:  # not Linux: the machine's network card
        return f"{uuid.getnode():012x}"


def _on_disk(path: str) -> bool:
    """Whether ``path`` is on a file system that no other machine can write to."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split() for line in file]
    except FileNotFoundError:
        return False
    return any(mount[2] == number and mount[mount.index("-") + 1] in _DISKS for mount in mounts)


def write_bytes(path: str, data: bytes, durable: bool = True) -> None:
    """Writes ``data`` to ``path``, whole or not at all; ``durable`` as in :func:`atomic_writer`."""
    with atomic_writer(path, durable) as file:
        file.write(data)


def flush_all() -> None:
    """Returns when everything that this machine has written so far is on its disks."""
    os.sync()


def write_json(path: str, value: Any) -> None:
    """Writes ``value`` as JSON to ``path``, whole or not at all; see :func:`compact_json`."""
    write_bytes(path, compact_json(value))


def compact_json(value: Any) -> bytes:
    """``value`` as JSON without spaces; NaN is refused, since JSON has none."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def write_done(path: str) -> None:
    """Writes an empty marker file: what it marks is complete."""
    write_bytes(path, b"")


def remove(path: str) -> None:
    """Removes the file ``path``; one that is gone already is fine."""
    filesystem, local = _locate(path)
    with suppress(FileNotFoundError):
        filesystem.rm_file(local)


def remove_folder(path: str) -> None:
    """Removes the folder ``path`` with all that is in it; one that is gone already is fine."""
    filesystem, local = _locate(path)
    with suppress(FileNotFoundError):
        filesystem.rm(local, recursive=True)


@contextmanager
def open_to_read(path: str) -> Iterator[BinaryIO]:
    """Yields the file ``path``, which can be read from any place on; raises UserError where there is none."""
    filesystem, local = _locate(path)
    with _missing_is_told(path):
        file = filesystem.open(local, "rb")
    with file:
        yield file


def read_bytes(path: str) -> bytes:
    """The content of ``path``; raises UserError where there is no such file."""
    if "://" not in path:
        # The training reads thousands a second, and finding the file system takes longer than reading.
        with _missing_is_told(path), open(path, "rb") as file:
            return file.read()
    filesystem, local = _locate(path)
    with _missing_is_told(path):
        if _is_object_store(filesystem):
            # One request; without an end the driver asks for the size first, to fetch large objects in parallel.
            with suppress(OSError):  # an empty object has no range
                data = bytes(filesystem.cat_file(local, start=0, end=_SMALL))
                if len(data) < _SMALL:
                    return data
        return bytes(filesystem.cat_file(local))


def content(path: str) -> bytes | mmap.mmap:
    """The content of ``path``, of a local file as a map of it, which takes no memory of its own.

    Raises UserError where there is no such file.
    """
    filesystem, local = _locate(path)
    if not isinstance(filesystem, LocalFileSystem):
        return read_bytes(path)
    with _missing_is_told(path), open(local, "rb") as file:
        is_empty = os.fstat(file.fileno()).st_size == 0  # of which there is no map
        return b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_range(path: str, offset: int, length: int) -> bytes:
    """``length`` bytes of ``path`` from ``offset`` on; raises UserError if the file is missing or shorter."""
    filesystem, local = _locate(path)
    end = offset + length
    with _missing_is_told(path):
        if isinstance(filesystem, LocalFileSystem):  # reading there takes the memory that is asked for
            end = min(end, os.path.getsize(local))
        data = bytes(filesystem.cat_file(local, start=offset, end=end)) if offset < end else b""
    if len(data) != length:
        raise UserError(f"{path} ends before byte {offset + length}: it is cut off, write or copy it again")
    return data


@contextmanager
def _missing_is_told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        nowhere = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        if nowhere or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            hint = "check the path, or run the step that writes it"
            raise UserError(f"there is no file {path}: {hint}") from error
        raise


def read_json(path: str) -> Any:
    """The JSON value in ``path``; raises UserError where the file is missing or is not JSON (NaN is not)."""
    return parse_json(path, read_bytes(path))


def parse_json(path: str, text: bytes) -> Any:
    """The JSON value ``text``; raises UserError that names ``path`` where it is not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): write it again or restore it") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON's")


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 digest of the file ``path``."""
    filesystem, local = _locate(path)
    with filesystem.open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
