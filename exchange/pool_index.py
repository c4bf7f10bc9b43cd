"""The index of the instance pool: a columnar file for each round, memory-mapped, so that processes share it.

``pool/index/rdNN.arrow`` (Arrow IPC) lists what a round made, kept or dropped; the pool of a training round
is the kept rows of several such files. Adding a round writes its own file and touches no other.
"""

import bisect
import functools
import itertools
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exchange import files
from exchange.arrow_files import open_batches, write_batches
from exchange.errors import UserError
from exchange.images import MAX_PIXELS, MAX_SIDE
from exchange.layout import RunLayout

FORMAT_VERSION = b"1"
_AGAIN = "remove it and run stage 2 again (mrca pool verify names everything that is damaged)"
_ROWS_PER_BATCH = 1 << 16
_ROWS_AT_ONCE = 256  # of those, as objects
_OPTIONAL = ("clip_white", "clip_black", "similarity", "judge")
_PART = r"[^./\\\x00][^/\\\x00]*"
_NAMES = {"file": rf"\A{_PART}\z", "cutout": rf"\A{_PART}(/{_PART})*\z"}
_HINTS = {"file": ", which is no plain file name", "cutout": ", which leads out of the pool"}
_LONGEST_NAME = 200
_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("round", pa.int32()),
        ("category_id", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bbox", pa.list_(pa.int32(), 4)),
        ("area", pa.int32()),
        ("objects", pa.int32()),
        ("clip_white", pa.float64()),
        ("clip_black", pa.float64()),
        ("reason", pa.string()),
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("cutout", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("foreground", pa.string()),
        ("similarity", pa.float64()),
        ("judge", pa.float64()),
    ],
    metadata={"format": FORMAT_VERSION},
)
# What a pool from before there was the column has in it.
_ADDED = {"foreground": "", "similarity": None, "judge": None}
# Newest first: the columns of each came one after the other.
_SCHEMAS = [_SCHEMA]
for _name in reversed(_ADDED):
    _SCHEMAS.append(_SCHEMAS[-1].remove(_SCHEMAS[-1].get_field_index(_name)))
# In a file of their own, since they are most of the bytes and no draw reads them: a page that is touched brings
# its neighbours into memory.
_OUTLINES = pa.schema([("segmentation", pa.list_(pa.list_(pa.int32())))], metadata=_SCHEMA.metadata)


@dataclass(frozen=True)
class PoolInstance:
    """One row of the index: everything that a decision about the instance depends on, and the decision.

    Attributes:
        width, height: of the generated image, in pixels.
        bbox: XYWH, tight around alpha > 0.
        area: number of pixels with alpha > 0.
        segmentation: their outer contours, [x, y, x, y, …] each.
        objects: separate objects in the mask before the largest was chosen.
        clip_white, clip_black: 100 x cosine of cut-out and text on white and on black; None: not measured.
        reason: why the instance was dropped; empty for a kept one.
        seed, model, prompt: where it comes from.
        foreground: the model that cut it out; empty in pools older than this field.
        similarity: mean cosine with real objects of the class, see diSegmenter/similarity.py; None: not measured.
        judge: probability that it shows one whole object of its class, see diSegmenter/judge.py; None: not asked.
        cutout: path, below the pool folder, of the file with the RGBA cut-out, cropped to ``bbox``: all of it
            if ``length`` is -1, else ``length`` bytes from ``offset`` on.
    """

    file: str
    round: int
    category_id: int
    width: int
    height: int
    bbox: list[int]
    area: int
    segmentation: list[list[int]]
    objects: int
    clip_white: float | None
    clip_black: float | None
    reason: str
    seed: int
    model: str
    prompt: str
    cutout: str
    offset: int = 0
    length: int = -1
    foreground: str = ""
    similarity: float | None = None
    judge: float | None = None

    @property
    def clip_score(self) -> float | None:
        """The larger of the two CLIP scores."""
        return max((s for s in (self.clip_white, self.clip_black) if s is not None), default=None)


def write_index(layout: RunLayout, round_: int, instances: Sequence[PoolInstance]) -> None:
    """Writes the outlines of one round, then its index, each whole or not at all."""
    write_batches(layout.pool_outlines(round_), _OUTLINES, _batches(_OUTLINES, instances))
    write_batches(layout.pool_index(round_), _SCHEMA, _batches(_SCHEMA, instances))


def write_part(layout: RunLayout, round_: int, part: int, instances: Sequence[PoolInstance]) -> None:
    """Writes a part of a round that memory cannot hold; no reader of the pool sees it before :func:`join_parts`."""
    write_batches(layout.pool_part_outlines(round_, part), _OUTLINES, _batches(_OUTLINES, instances))
    write_batches(layout.pool_part(round_, part), _SCHEMA, _batches(_SCHEMA, instances))


def join_parts(layout: RunLayout, round_: int, parts: int) -> int:
    """Makes the parts 0 … ``parts`` - 1 the index of a round, one after the other; returns the number of rows.

    Raises UserError where a part is missing or damaged.
    """
    rows = 0
    for target, schema, part_of in (
        (layout.pool_outlines(round_), _OUTLINES, layout.pool_part_outlines),
        (layout.pool_index(round_), _SCHEMA, layout.pool_part),
    ):
        batches = (batch for part in range(parts) for batch in _open(part_of(round_, part), schema))
        rows = write_batches(target, schema, batches)
    return rows


class PoolIndex:
    """The instances of some rounds in the order of round and row, the kept ones or all (``dropped_too``), without those
    whose files are called ``left_out``.

    Opening maps the files into memory, checks every value once and keeps two small columns. Processes that are
    forked share the map; a pickled index opens it again.

    Attributes:
        category_ids: int32 (N,).
    """

    def __init__(
        self,
        layout: RunLayout,
        rounds: Sequence[int],
        dropped_too: bool = False,
        left_out: Collection[str] = frozenset(),
    ) -> None:
        """Raises UserError where the index of a round is missing, damaged or of another format."""
        self._layout = layout
        self._sources = list(rounds)
        self._batches = [batch for round_ in rounds for batch in _open(layout.pool_index(round_), _SCHEMA)]
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in self._batches)]
        self._dropped_too, self._left_out = dropped_too, left_out
        chosen = [
            start + np.flatnonzero(self._chosen(batch))
            for start, batch in zip(self._starts, self._batches, strict=False)
        ]
        self._rows = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
        self.category_ids = self.column("category_id")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PoolInstance:
        """Everything on record about one instance."""
        place, row = self._locate(index)
        fields = {name: self._batches[place].column(name)[row].as_py() for name in _SCHEMA.names}
        return PoolInstance(**fields, **self._outlines[place].slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[PoolInstance]:
        """Everything on record about each, a stretch of rows at a time: much faster than one by one."""
        for place, batch in enumerate(self._batches):
            first, end = self._instances_of(place)
            for at in range(first, end, _ROWS_AT_ONCE):
                rows = pa.array(self._rows[at : min(at + _ROWS_AT_ONCE, end)] - self._starts[place])
                taken = batch.take(rows)
                columns = [_values(taken.column(name)) for name in _SCHEMA.names]
                outlines = _values(self._outlines[place].column("segmentation").take(rows))
                for *fields, outline in zip(*columns, outlines, strict=True):
                    yield PoolInstance(**dict(zip(_SCHEMA.names, fields, strict=True)), segmentation=outline)

    def write_as(self, layout: RunLayout, round_: int, **columns: npt.NDArray[Any]) -> None:
        """Writes its instances as those of one round, with ``columns``, (N,) each, in place of theirs.

        As :func:`write_index` does, but no instance becomes an object, of which memory holds far fewer than a disk. The
        round may be the one that they are read from.
        """
        write_batches(layout.pool_outlines(round_), _OUTLINES, self._taken(self._outlines, {}))
        write_batches(layout.pool_index(round_), _SCHEMA, self._taken(self._batches, columns))

    def column(self, name: str) -> npt.NDArray[Any]:
        """One field of all instances, (N,): a number each (NaN where there is none), or a text."""
        nothing = pa.array([], _SCHEMA.field(name).type)  # of its type where there is no round
        columns = [nothing, *(batch.column(name) for batch in self._batches)]
        return np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns])[self._rows]

    def file(self, index: int) -> str:
        """File name of an instance's generated image."""
        return str(self._value("file", index))

    def name(self, index: int) -> str:
        """Path of the file that holds the cut-out of an instance."""
        return self._layout.pool(self._value("cutout", index))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the cut-out of an instance."""
        *_, width, height = self._value("bbox", index)
        return height, width

    def read(self, index: int) -> bytes:
        """The encoded RGBA cut-out of an instance, see exchange/cutouts.py; in old pools it may be a PNG image.

        Raises UserError where the file is missing, or the index names a file out of the pool.
        """
        path, offset, length = self.name(index), self._value("offset", index), self._value("length", index)
        return files.read_bytes(path) if length < 0 else files.read_range(path, offset, length)

    def _chosen(self, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        """Which rows of a batch belong to it: bool (rows,)."""
        kept = np.asarray(pc.equal(batch.column("reason"), "")) | self._dropped_too
        if self._left_out:
            kept &= ~np.asarray(pc.is_in(batch.column("file"), pa.array(self._left_out, pa.string())))
        return kept

    def _value(self, name: str, index: int) -> Any:
        place, row = self._locate(index)
        return self._batches[place].column(name)[row].as_py()

    def _instances_of(self, place: int) -> tuple[int, int]:
        """The first instance of a record batch, and the one behind its last."""
        first, end = np.searchsorted(self._rows, self._starts[place : place + 2]).tolist()
        return first, end

    def _taken(
        self, batches: Sequence[pa.RecordBatch], columns: Mapping[str, npt.NDArray[Any]]
    ) -> Iterator[pa.RecordBatch]:
        """The instances in each of ``batches``, with ``columns`` of all instances in place of theirs."""
        for place, batch in enumerate(batches):
            first, end = self._instances_of(place)
            taken = batch.take(pa.array(self._rows[first:end] - self._starts[place]))
            for name, values in columns.items():
                field = batch.schema.field(name)
                column = pa.array(values[first:end], field.type)
                taken = taken.set_column(batch.schema.get_field_index(name), field, column)
            yield taken

    def _locate(self, index: int) -> tuple[int, int]:
        """The record batch of an instance, and its row there."""
        row = int(self._rows[index])
        place = bisect.bisect_right(self._starts, row) - 1
        return place, row - self._starts[place]

    @functools.cached_property
    def _outlines(self) -> list[pa.RecordBatch]:
        """The polygons in batches as long as those of the index; opened when they are asked for."""
        paths = [self._layout.pool_outlines(round_) for round_ in self._sources]
        batches = [batch for path in paths for batch in _open(path, _OUTLINES)]
        if [batch.num_rows for batch in batches] != [batch.num_rows for batch in self._batches]:
            raise UserError(f"{', '.join(paths)}: not the outlines of the index beside: {_AGAIN}")
        try:
            for outlines, rows in zip(batches, self._batches, strict=True):
                _check_outlines(outlines, rows)
        except ValueError as error:
            raise UserError(f"{', '.join(paths)}: damaged ({error}): {_AGAIN}") from error
        return batches

    def __reduce__(self) -> tuple[Any, ...]:
        return PoolIndex, (self._layout, self._sources, self._dropped_too, self._left_out)


def _values(column: pa.Array) -> list[Any]:
    """A column of the index as Python's values: far faster for lists than Arrow, number by number."""
    if pa.types.is_list(column.type):
        inner = iter(_values(column.flatten()))
        return [list(itertools.islice(inner, length)) for length in column.value_lengths().to_pylist()]
    if pa.types.is_fixed_size_list(column.type):
        numbers = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        return list(numbers.tolist())
    return list(column.to_numpy().tolist() if pa.types.is_integer(column.type) else column.to_pylist())


def _batches(schema: pa.Schema, instances: Sequence[PoolInstance]) -> list[pa.RecordBatch]:
    columns = {name: [getattr(instance, name) for instance in instances] for name in schema.names}
    return list(pa.Table.from_pydict(columns, schema=schema).to_batches(max_chunksize=_ROWS_PER_BATCH))


def _open(path: str, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The record batches of one index file, mapped if it is local; those of the index itself are checked row by row."""
    if not files.exists(path):
        raise UserError(f"there is no pool index {path}: run stage 2 for that round, or mrca pool import")
    try:
        batches = open_batches(path, _SCHEMAS if schema is _SCHEMA else [schema])
        if batches is None:
            raise UserError(f"{path} is a pool index of another version: {_AGAIN}")
        if schema is _SCHEMA:
            batches = [batch if batch.schema == schema else _of_today(batch) for batch in batches]
            for batch in batches:
                _check_rows(batch)
        return batches
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {_AGAIN}") from error


def _of_today(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of an index from before there were the columns that it lacks."""
    lacking = [_SCHEMA.field(name) for name in _ADDED if name not in batch.schema.names]
    columns = [pa.array([_ADDED[field.name]] * batch.num_rows, field.type) for field in lacking]
    return pa.record_batch([*batch.columns, *columns], schema=_SCHEMA)


def _check_rows(batch: pa.RecordBatch) -> None:
    """Raises ValueError for the first value that no row of a pool can have; what it holds is valid Arrow."""
    column = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name, values in column.items():
        if (values.null_count and name not in _OPTIONAL) or (name == "bbox" and values.flatten().null_count):
            raise ValueError(f"{name!r} is missing in a row")
    numbers = ("round", "category_id", "width", "height", "area", "objects", "offset", "length")
    value = {name: column[name].to_numpy().astype(np.int64) for name in numbers}
    width, height, area = value["width"], value["height"], value["area"]
    x, y, w, h = column["bbox"].flatten().to_numpy().astype(np.int64).reshape(-1, 4).T
    kept = np.asarray(pc.equal(column["reason"], ""))  # a dropped one may show nothing: no box, no area
    wrong = {name: value[name] < 0 for name in ("round", "category_id", "objects", "offset")}
    wrong["width"] = (width < 1) | (width > MAX_SIDE) | (width * height > MAX_PIXELS)
    wrong["height"] = (height < 1) | (height > MAX_SIDE)
    wrong["bbox"] = (x < 0) | (y < 0) | (w < kept) | (h < kept) | (x + w > width) | (y + h > height)
    wrong["area"] = (area < kept) | (area > w * h)
    wrong["length"] = value["length"] < -1
    for name in _OPTIONAL:
        wrong[name] = ~np.asarray(pc.fill_null(pc.is_finite(column[name]), True))
    for name, pattern in _NAMES.items():
        good = pc.match_substring_regex(column[name], pattern)
        wrong[name] = ~np.asarray(good) | (np.asarray(pc.binary_length(column[name])) > _LONGEST_NAME)
    for name, rows in wrong.items():
        if rows.any():
            row = int(rows.argmax())
            what = reprlib.repr(column[name][row].as_py())
            raise ValueError(
                f"{name!r} of {column['file'][row].as_py()[:80]!r} is {what}{_HINTS.get(name, '')}"
            )


def _check_outlines(outlines: pa.RecordBatch, rows: pa.RecordBatch) -> None:
    """Raises ValueError where a polygon is none, or leaves the image that its row in the index tells of."""
    of_rows = outlines.column("segmentation")
    of_polygons = of_rows.flatten()
    numbers = of_polygons.flatten()
    if of_rows.null_count or of_polygons.null_count or numbers.null_count:
        raise ValueError("a polygon or a number of it is missing")
    polygons, points = of_rows.value_lengths().to_numpy(), of_polygons.value_lengths().to_numpy()
    if (points % 2).any() or (points < 6).any():
        raise ValueError("a polygon is not three points or more of two numbers each")
    before = np.concatenate([[0], np.cumsum(points // 2)])[np.concatenate([[0], np.cumsum(polygons)])]
    corners = numbers.to_numpy().reshape(-1, 2)
    for axis, name in enumerate(("width", "height")):
        most = np.repeat(rows.column(name).to_numpy(), np.diff(before))
        if ((corners[:, axis] < 0) | (corners[:, axis] > most)).any():
            raise ValueError("a polygon leaves its image")
