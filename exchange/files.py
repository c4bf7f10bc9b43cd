"""Files that appear whole or not at all, on any fsspec file system (a plain path is a local one)."""

import hashlib
import json
import os
import posixpath
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from exchange.errors import UserError


def join(root: str, *parts: str) -> str:
    """Joins a path below ``root``; raises UserError for a part that would lead out of it."""
    below = posixpath.normpath(posixpath.join(*parts))
    if below.startswith(("/", "..")) or "\\" in below or "\0" in below:
        raise UserError(f"the path {'/'.join(parts)!r} leads out of {root}: use a relative path without '..'")
    return f"{root.rstrip('/')}/{below}"


def _locate(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of ``path``, and its name there.

    Nothing is remembered of what lies in a folder: other processes write there, and an object store's driver
    would never see the marker that is waited for.
    """
    filesystem, local = fsspec.core.url_to_fs(path, use_listings_cache=False)
    return filesystem, local


def exists(path: str) -> bool:
    """Whether ``path`` names a file or a folder."""
    filesystem, local = _locate(path)
    return bool(filesystem.exists(local))


def make_dirs(path: str) -> None:
    """Makes the folder ``path`` and those above it; a folder that is there already is fine."""
    filesystem, local = _locate(path)
    filesystem.makedirs(local, exist_ok=True)


def list_dir(path: str) -> list[str]:
    """Sorted names (not paths) of what lies in the folder ``path``; empty if there is no such folder."""
    filesystem, local = _locate(path)
    if not filesystem.exists(local):
        return []
    return sorted(posixpath.basename(str(name).rstrip("/")) for name in filesystem.ls(local, detail=False))


@contextmanager
def atomic_writer(path: str, durable: bool = True) -> Iterator[BinaryIO]:
    """Yields a binary file whose content appears at ``path`` when the block ends well, and never otherwise.

    Written beside the target, flushed to the disk, then renamed over it: a reader sees the old file or the
    new one, and so does whoever looks after a crash. Without ``durable`` a power failure (not a killed process)
    may leave it cut off until :func:`flush_all` was called: for many small files whose wholeness is checked.
    """
    filesystem, target = _locate(path)
    beside = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
    filesystem.makedirs(posixpath.dirname(target), exist_ok=True)
    local = isinstance(filesystem, LocalFileSystem)
    try:
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
        if filesystem.exists(beside):
            filesystem.rm(beside)
        raise


def write_bytes(path: str, data: bytes, durable: bool = True) -> None:
    """Writes ``data`` to ``path``, whole or not at all; ``durable`` as in :func:`atomic_writer`."""
    with atomic_writer(path, durable) as file:
        file.write(data)


def flush_all() -> None:
    """Returns when everything that this machine has written so far is on its disks."""
    os.sync()


def write_json(path: str, value: Any) -> None:
    """Writes ``value`` as JSON to ``path``, whole or not at all; NaN is refused, since JSON has none."""
    write_bytes(path, json.dumps(value, allow_nan=False, separators=(",", ":")).encode())


def write_done(path: str) -> None:
    """Writes an empty marker file: what it marks is complete."""
    write_bytes(path, b"")


def remove(path: str) -> None:
    """Removes the file ``path``; one that is gone already is fine."""
    filesystem, local = _locate(path)
    try:
        filesystem.rm_file(local)
    except FileNotFoundError:
        pass


@contextmanager
def open_to_read(path: str) -> Iterator[BinaryIO]:
    """Yields the file ``path``, which can be read from any place on; raises UserError where there is none."""
    filesystem, local = _locate(path)
    try:
        file = filesystem.open(local, "rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"there is no file {path}: check the path, or run the step that writes it") from error
    with file:
        yield file


def read_bytes(path: str) -> bytes:
    """The content of ``path``; raises UserError where there is no such file."""
    filesystem, local = _locate(path)
    try:
        return bytes(filesystem.cat_file(local))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"there is no file {path}: check the path, or run the step that writes it") from error


def read_range(path: str, offset: int, length: int) -> bytes:
    """``length`` bytes of ``path`` from ``offset`` on; raises UserError if the file is missing or shorter."""
    filesystem, local = _locate(path)
    try:
        data = bytes(filesystem.cat_file(local, start=offset, end=offset + length))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"there is no file {path}: check the path, or run the step that writes it") from error
    if len(data) != length:
        raise UserError(f"{path} ends before byte {offset + length}: it is cut off, write or copy it again")
    return data


def read_json(path: str) -> Any:
    """The JSON value in ``path``; raises UserError where the file is missing or is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): write it again or restore it") from error


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 digest of the file ``path``."""
    digest = hashlib.sha256()
    filesystem, local = _locate(path)
    with filesystem.open(local, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def wait_for(path: str, what: str, timeout_s: float, poll_s: float = 1.0) -> None:
    """Returns when ``path`` exists; raises UserError that says what was waited for after ``timeout_s``."""
    started, deadline = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic() + timeout_s
    while not exists(path):
        if time.monotonic() >= deadline:
            raise UserError(
                f"waited {timeout_s:.0f} s (since {started}) for {what}, but {path} did not appear: "
                "run the step that writes it, or allow a longer wait"
            )
        time.sleep(min(poll_s, max(deadline - time.monotonic(), 0.01)))
