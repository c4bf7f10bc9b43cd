"""Reads weight files and checkpoints, wherever they lie, without running code from them.

Memory is bounded by the size of the file: its content, and once more what of it is being read.
"""

from __future__ import annotations

import errno
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from detectron2_ext.modeling.plain_pickle import PlainUnpickler
from exchange import files
from exchange.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # PyTorch's before 1.6: pickles, then the storages


class _Damaged(Exception):
    """What is wrong with the content of a file."""


def read_weight_file(path: str, sha256: str | None = None) -> dict[str, Any]:
    """The dictionary in a ``.pth``, ``.pkl`` or ``.safetensors`` file, on the CPU: tensors and plain values.

    Args:
        path: on any fsspec file system.
        sha256: of the file, in hexadecimal; None does not check.

    Raises:
        UserError: missing, not the file with this ``sha256``, damaged, or with more in it than weights.
    """
    if not files.exists(path):
        raise UserError(f"there is no weight file {path}: check MODEL.WEIGHTS, or the file that names it")
    with files.open_to_read(path) as file:
        if sha256 is not None and files.sha256(path) != sha256:
            raise UserError(
                f"{path} is not the file that the feedback was computed with: its SHA-256 is not {sha256}"
            )
        try:
            content = _read(file, path)
        except (_Damaged, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(f"{path} cannot be read as weights, it may be cut short: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, but weight files hold a dictionary")
    return content


def _read(file: BinaryIO, path: str) -> Any:
    if path.endswith(".safetensors"):
        return _read_safetensors(file.read())
    begin = file.read(4)
    file.seek(0)
    if begin == b"PK\x03\x04":
        return _read_archive(file)
    data = file.read()
    stream = io.BytesIO(data)
    first = PlainUnpickler(stream, len(data)).load()
    legacy = isinstance(first, int) and first == _LEGACY_MAGIC
    return _read_legacy(stream, len(data)) if legacy else first


def _read_safetensors(data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise _Damaged(str(error)) from error


def _read_archive(file: BinaryIO) -> Any:
    """The form of today's ``torch.save``: a pickle and the storages, each a file in an uncompressed archive."""
    size = file.seek(0, io.SEEK_END)
    with _parsing_archive():
        archive = zipfile.ZipFile(file)
    infos = {info.filename: info for info in archive.infolist()}
    if sum(info.file_size for info in infos.values()) > size:
        raise _Damaged("its parts are larger than itself")
    root = next((name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl")), None)
    if root is None:
        raise _Damaged("it is an archive without a data.pkl")

    def part(name: str) -> bytes:
        if root + name not in infos or infos[root + name].compress_type != zipfile.ZIP_STORED:
            raise _Damaged(f"it has no {name} as torch.save writes it")
        with _parsing_archive():
            return archive.read(infos[root + name])

    if f"{root}byteorder" in infos and part("byteorder") != b"little":
        raise _Damaged("its numbers are not in little-endian order")
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            storages[key] = _from_bytes(part(f"data/{key}"), dtype)
        if storages[key].dtype != dtype or len(storages[key]) != count:
            raise _Damaged(f"storage {key} has not the {count} {dtype} numbers that it should have")
        return storages[key]

    content = part("data.pkl")
    return PlainUnpickler(io.BytesIO(content), len(content), storage).load()


@contextmanager
def _parsing_archive() -> Iterator[None]:
    """Around calls of zipfile, which lets through what its helpers raise for a damaged file."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        struct.error,
    ) as error:
        raise _Damaged(str(error)) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning; anything else is of the disk
            raise
        raise _Damaged(str(error)) from error


def _read_legacy(stream: io.BytesIO, size: int) -> Any:
    """The form of ``torch.save`` before version 1.6, after the magic number."""
    storages: dict[str, Tensor] = {}
    left = size

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise _Damaged("its storages are larger than itself")
            storages[key] = torch.empty(count, dtype=dtype)  # filled below
        if storages[key].dtype != dtype or len(storages[key]) != count:
            raise _Damaged(f"storage {key} changes its type or length")
        return storages[key]

    match PlainUnpickler(stream, size).load(), PlainUnpickler(stream, size).load():
        case 1001, {"little_endian": True}:
            pass
        case _:
            raise _Damaged("it is of an unknown version of PyTorch, or not in little-endian order")
    content = PlainUnpickler(stream, size, storage).load()
    keys = PlainUnpickler(stream, size).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*storages}:
        raise _Damaged("its storages are not those that it needs")
    for key in keys:
        target = storages[key]
        count, data = stream.read(8), stream.read(target.nbytes)
        if count != struct.pack("<q", len(target)) or len(data) != target.nbytes:
            raise _Damaged(f"storage {key} is not whole")
        target.copy_(_from_bytes(data, target.dtype))
    return content


def _from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    """A tensor (N,) with memory of its own."""
    if len(data) % dtype.itemsize:
        raise _Damaged(f"{len(data)} bytes are no whole number of {dtype}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
