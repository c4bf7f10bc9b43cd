"""Named arrays made from a file once and kept in a folder, where all processes of a machine map them.

The folder is ``$MRCA_CACHE`` or ``~/.cache/mrca``. What lies there can be made again at any time.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from exchange import files

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Schema = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape of a row
_ENTRY = re.compile("[0-9a-f]{20}(-[0-9a-f]{20}|[.]part)")
_SMALLEST = 4 << 20  # bytes of a file that is worth an entry; smaller ones are read in a tenth of a second


class ArrayWriter(Protocol):
    """Where arrays are written piecewise."""

    def append(self, name: str, rows: npt.ArrayLike) -> None:
        """Adds rows to the end of an array of the schema."""


Fill = Callable[[ArrayWriter], None]


class _InMemory:
    def __init__(self, schema: Schema) -> None:
        self._pieces = {name: [np.empty((0, *row), dtype)] for name, (dtype, row) in schema.items()}

    def append(self, name: str, rows: npt.ArrayLike) -> None:
        self._pieces[name].append(np.asarray(rows, dtype=self._pieces[name][0].dtype))

    def arrays(self) -> Arrays:
        return {name: np.concatenate(self._pieces.pop(name)) for name in list(self._pieces)}


class _InFolder:
    """A ``.npy`` file an array. NumPy leaves space in their heads for the number of rows, which is written last."""

    def __init__(self, folder: Path, schema: Schema, stack: ExitStack) -> None:
        self._schema = schema
        self._files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in schema}
        self._rows = dict.fromkeys(schema, 0)
        for name in schema:
            self._write_head(name)

    def append(self, name: str, rows: npt.ArrayLike) -> None:
        array = np.ascontiguousarray(rows, dtype=self._schema[name][0])
        self._files[name].write(array.data)
        self._rows[name] += len(array)

    def finish(self) -> None:
        for name, file in self._files.items():
            file.seek(0)
            self._write_head(name)
            file.flush()
            os.fsync(file.fileno())

    def _write_head(self, name: str) -> None:
        dtype, row = self._schema[name]
        head = {
            "descr": np.dtype(dtype).str,
            "fortran_order": False,
            "shape": (self._rows[name], *row),
        }
        file: BinaryIO = self._files[name]
        np.lib.format.write_array_header_1_0(file, head)


def made_in_memory(schema: Schema, fill: Fill) -> Arrays:
    """The arrays of ``schema`` as ``fill`` writes them."""
    writer = _InMemory(schema)
    fill(writer)
    return writer.arrays()


def made_once(
    sources: Sequence[str], kind: str, schema: Schema, fill: Fill, usable: Callable[[Arrays], bool]
) -> Arrays:
    """The arrays that ``fill`` makes of the files ``sources``: mapped from the cache, where the first process that
    asks writes them while the others wait.

    An entry is known by paths, sizes, times and inodes (on an object store by what its driver says of the content). One
    that is damaged is made again; a cache that cannot be used is done without, with a line in the log.

    Args:
        kind: what is made, and in which format; another one is another entry.
        usable: whether the arrays of an entry go together. Sizes and types have been checked.

    Raises what ``fill`` raises.
    """
    stamps = [files.stamp(path) for path in sources]
    if None in stamps or sum(stamp["size"] for stamp in stamps if stamp) < _SMALLEST:
        return made_in_memory(schema, fill)
    root, name = cache_folder(), _digest([kind, [os.path.abspath(path) for path in sources]])
    entry = root / f"{name}-{_digest(stamps)}"
    arrays = _opened(entry, schema, usable, _log.debug)
    if arrays is not None:
        return arrays
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            arrays = _opened(entry, schema, usable, _log.warning)
            if arrays is None:
                _log.info("reading %s, for the next time into %s", ", ".join(sources), entry)
                _write(entry, root / f"{name}.part", schema, fill)
                for other in root.glob(f"{name}-*"):
                    if other != entry:
                        shutil.rmtree(other)
                arrays = _mapped(entry, schema)
            return arrays
    except (OSError, NotImplementedError) as error:  # the last where there are no locks
        _log.warning(
            "the cache %s is not usable (%s): going on without, at the price of memory and time; set MRCA_CACHE to "
            "another folder",
            root,
            error,
        )
    return made_in_memory(schema, fill)


def cache_folder() -> Path:
    return Path(os.environ.get("MRCA_CACHE") or "~/.cache/mrca").expanduser()


def entries() -> list[tuple[Path, int]]:
    """The entries of the cache, and what a killed process left of one, with their sizes in bytes."""
    folders = sorted(path for path in cache_folder().glob("*") if _ENTRY.match(path.name))
    return [(folder, sum(file.stat().st_size for file in folder.iterdir())) for folder in folders]


def clear() -> int:
    """Removes all entries; who has them open keeps them. Returns the number of bytes."""
    removed = 0
    for folder, size in entries():
        with FileLock(folder.with_name(f"{re.split('[-.]', folder.name)[0]}.lock")):
            shutil.rmtree(folder)
        removed += size
    return removed


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:20]


def _write(entry: Path, part: Path, schema: Schema, fill: Fill) -> None:
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        with ExitStack() as stack:
            writer = _InFolder(part, schema, stack)
            fill(writer)
            writer.finish()
        shutil.rmtree(entry, ignore_errors=True)
        part.rename(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _opened(
    entry: Path, schema: Schema, usable: Callable[[Arrays], bool], log: Callable[..., None]
) -> Arrays | None:
    if not entry.exists():
        return None
    try:
        arrays = _mapped(entry, schema)
        if usable(arrays):
            return arrays
        problem = "its arrays do not go together"
    except (OSError, ValueError, EOFError) as error:
        problem = str(error)
    log("%s in the cache is damaged (%s): it is made again", entry, problem)
    return None


def _mapped(entry: Path, schema: Schema) -> Arrays:
    arrays = {}
    for name, (dtype, row) in schema.items():
        array = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if array.dtype != dtype or array.shape[1:] != row:
            raise ValueError(f"{name} has another type")
        arrays[name] = array.view(np.ndarray)
    return arrays
