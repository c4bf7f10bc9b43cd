"""Reads weight files without running code from them."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from exchange.errors import UserError

_PLAIN_NUMPY = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, numbers and NumPy arrays; anything else in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _PLAIN_NUMPY:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):  # how arrays of protocol 2 hold their bytes …
            return _encode_latin1
        if (module, name) == ("__builtin__", "bytes"):  # … and empty ones
            return _no_bytes
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")


def _encode_latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def read_weight_file(path: str, sha256: str | None = None) -> dict[str, Any]:
    """The dictionary in a ``.pth``, ``.pkl`` or ``.safetensors`` file.

    Raises:
        UserError: missing, not the file with this ``sha256`` (hexadecimal), damaged, or with more in it than
            weights.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no weight file {path}: check MODEL.WEIGHTS")
    if sha256 is not None and file_sha256(path) != sha256:
        raise UserError(
            f"{path} is not the file that the feedback was computed with: its SHA-256 is not {sha256}"
        )
    try:
        content = _read(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as weights, it may be cut short: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, but weight files hold a dictionary")
    return content


def file_sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: str) -> Any:
    if path.endswith(".safetensors"):
        return safetensors.torch.load_file(path)
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return _to_tensors(ArrayUnpickler(file, encoding="latin1").load())
    return torch.load(path, map_location="cpu", weights_only=True)


def _to_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _to_tensors(value) for name, value in content.items()}
    if isinstance(content, (np.ndarray, np.generic)) and content.dtype.kind in "fiub":
        return torch.from_numpy(np.array(content))
    return content
