"""What the kept instances of a pool look like to an image encoder: unit vectors by name, beside the index.

``pool/features/rdNN_KKK.arrow`` (Arrow IPC) has names and vectors in half precision, a part of a round in each file:
what comes to a round later gets a part of its own. ``made_from.json`` says which encoder all of them are by.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exchange import files
from exchange.arrow_files import open_batches, write_batches
from exchange.errors import UserError
from exchange.layout import RunLayout

_SCHEMA = pa.schema([("file", pa.string()), ("feature", pa.list_(pa.float16()))], metadata={"format": b"1"})
_log = logging.getLogger(__name__)
_NORM_ERROR = 0.01  # half precision rounds a unit vector by a thousandth at most


def begin(layout: RunLayout, made_from: dict[str, Any]) -> None:
    """Removes what was ``made_from`` something else, in JSON, or was left without saying from what."""
    path = layout.features_made_from()
    if _made_from(path) != made_from:
        files.remove(path)
        files.remove_folder(layout.pool("features"))
        files.write_json(path, made_from)


def _made_from(path: str) -> Any:
    if not files.exists(path):
        return None
    try:
        return files.read_json(path)
    except UserError as error:
        _log.warning("%s: all features are made again", error)
        return None


def add_features(
    layout: RunLayout, round_: int, names: Sequence[str], features: npt.NDArray[np.floating[Any]]
) -> None:
    """Writes a part of a round behind those that there are: unit vectors (N, D) of the instances called ``names``."""
    part = max(layout.feature_parts(round_), default=-1) + 1
    count, width = features.shape
    values = pa.array(features.astype(np.float16).ravel())
    vectors = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * width), values)
    batch = pa.record_batch([pa.array(names, pa.string()), vectors], schema=_SCHEMA)
    write_batches(layout.features(round_, part), _SCHEMA, [batch])


class PoolFeatures:
    """The features of those instances of some rounds that were measured; files on this machine stay mapped.

    Raises UserError where a part is damaged, or of another width than the others.
    """

    def __init__(self, layout: RunLayout, rounds: Sequence[int]) -> None:
        known = files.exists(layout.features_made_from())
        parts = [
            read_part(layout.features(round_, part))
            for round_ in (rounds if known else ())
            for part in layout.feature_parts(round_)
        ]
        self._vectors = [vectors for _, vectors in parts]
        if len({vectors.shape[1] for vectors in self._vectors}) > 1:
            raise UserError(
                f"{layout.pool('features')} has features of several widths: remove the folder and run mrca pool "
                f"measure {layout.root} again"
            )
        self._names = pa.concat_arrays([names for names, _ in parts]) if parts else pa.array([], pa.string())
        self._starts = np.cumsum([0, *map(len, self._vectors)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Where those called ``names`` are: (N,), -1 where one was not measured."""
        found = pc.index_in(pa.array(names, pa.string()), value_set=self._names)
        return np.asarray(pc.fill_null(found, -1), np.int64)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Unit vectors, (N, D), N at least 1."""
        places = np.searchsorted(self._starts, rows, "right") - 1
        pairs = zip(places.tolist(), (rows - self._starts[places]).tolist(), strict=True)
        vectors = np.stack([self._vectors[place][row] for place, row in pairs]).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def read_part(path: str) -> tuple[pa.StringArray, npt.NDArray[np.float16]]:
    """Names and features, (N, D), of a part; UserError where it is damaged."""
    try:
        batches = open_batches(path, [_SCHEMA])
        if batches is None or len(batches) != 1:
            raise ValueError("not a part of a round")
        names, vectors = batches[0].columns
        if names.null_count or vectors.null_count or vectors.flatten().null_count or not len(names):
            raise ValueError("a name or a feature is missing")
        lengths = vectors.value_lengths().to_numpy()
        if lengths[0] < 1 or (lengths != lengths[0]).any():
            raise ValueError("features of several widths")
        features = vectors.flatten().to_numpy().reshape(len(lengths), lengths[0])
        norms = np.linalg.norm(features.astype(np.float32), axis=1)
        if not (np.abs(norms - 1) < _NORM_ERROR).all():  # NaN is not, either
            raise ValueError("a feature is no unit vector")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): run mrca pool measure again, which replaces it"
        ) from error
    return names, features
