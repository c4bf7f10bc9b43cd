"""Adds finished cut-outs from elsewhere to a pool, as a round of their own."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from diSegmenter.annotate import outline
from diSegmenter.pool.annotation_file import joined_categories, write_categories
from diSegmenter.pool.foreign import ForeignInstance, ForeignPool
from exchange import files
from exchange.cutouts import encode_cutout
from exchange.errors import UserError
from exchange.images import BadImage
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_index import PoolIndex, PoolInstance, join_parts, write_part
from exchange.threads import side_by_side

_PART = 4096


class Imported(NamedTuple):
    """What an import did: instances that are new, those that were there, a sentence for each that was left out."""

    added: int
    present: int
    left_out: list[str]


def next_round(layout: RunLayout) -> int:
    """The first round number after those in the pool."""
    return max(layout.pool_rounds(), default=-1) + 1


def numbered(layout: RunLayout, round_: int, category_ids: Iterable[int], counts: Counter[int]) -> list[str]:
    """Names for further instances of a round, of these categories; ``counts`` are those that each has, and go on."""
    names = []
    for category_id in category_ids:
        names.append(layout.instance_name(round_, category_id, counts[category_id]))
        counts[category_id] += 1
    return names


def import_round(
    layout: RunLayout,
    foreign: ForeignPool | Sequence[ForeignInstance],
    categories: Sequence[dict[str, Any]],
    source: str,
    workers: int = 4,
) -> Imported:
    """Brings the instances of another pool into this one, as its next round, in parts of a few thousand.

    A part that is whole stays when the import is killed, and the next call, which must be for the same pool, goes on
    behind it. What an import from the same source has brought does not come again, be it dropped since, unless its
    picture is another one now. Memory is that of one part, and of the names of what is there.

    Args:
        categories: the data set's category records, which the pool keeps.
        source: what the index shall say about where they come from.

    Raises:
        UserError: none can be imported, the pool is for other categories, the import of another pool has not come to
            its end, or another process is importing or merging.
    """
    counts: Counter[int] = Counter()
    left_out: list[str] = []
    parts = 0
    with (
        only_one(layout, "import"),
        side_by_side(workers) as threads,
        tqdm(desc="import", total=len(foreign), unit=" instances") as progress,
    ):
        categories = joined_categories(layout, categories)
        round_ = _round_to_import(layout)
        before = _Before(layout, source)
        present = 0
        for part in _parts(foreign):
            names = numbered(layout, round_, [instance.category_id for instance in part], counts)
            done = _import_part(layout, round_, parts, names, part, before, threads, progress)
            present += done.present
            left_out += done.left_out
            parts += 1
        added = counts.total() - present - len(left_out)
        if added:
            join_parts(layout, round_, parts)
            finish_import(layout, round_, categories)
        files.remove_folder(layout.pool_parts(round_))
        if not added and not present:
            first = left_out[0] if left_out else "there is none"
            raise UserError(f"none of {len(left_out)} instances can be imported: {first}")
    return Imported(added, present, left_out)


class _Before:
    """What imports from ``source`` have brought."""

    def __init__(self, layout: RunLayout, source: str) -> None:
        self.source = source
        self._index = PoolIndex(layout, layout.pool_rounds(), dropped_too=True)
        rows = np.flatnonzero(self._index.column("model") == source)
        origins = self._index.column("prompt")[rows].tolist()
        keys = zip(self._index.category_ids[rows].tolist(), origins, strict=True)
        self._rows = dict(zip(keys, rows.tolist(), strict=True))
        self._dropped = self._index.column("reason") != ""

    def holds(self, instance: ForeignInstance, cutout: bytes) -> bool:
        """Whether this instance is there, by this cut-out or dropped."""
        row = self._rows.get((instance.category_id, instance.origin))
        return row is not None and (bool(self._dropped[row]) or self._index.read(row) == cutout)


def _round_to_import(layout: RunLayout) -> int:
    """The next round, or the one that an import which was killed has begun."""
    newest = next_round(layout) - 1
    begun = newest >= 0 and files.exists(layout.pool_parts(newest))
    if begun and not files.exists(layout.annotations_done(newest)):  # killed after the index
        return newest
    if begun:  # killed after the marker
        files.remove_folder(layout.pool_parts(newest))
    return newest + 1


def _import_part(
    layout: RunLayout,
    round_: int,
    number: int,
    names: Sequence[str],
    part: Sequence[ForeignInstance],
    before: _Before,
    threads: ThreadPoolExecutor,
    progress: "tqdm[None]",
) -> Imported:
    """Imports a part unless it is there."""
    done = layout.pool_part_done(round_, number)
    origins = "".join(f"{instance.category_id} {instance.origin}\n" for instance in part)
    digest = hashlib.sha256(origins.encode(errors="surrogateescape")).hexdigest()
    if files.exists(done):
        record = files.read_json(done)
        if record["origins"] != digest:
            raise UserError(
                f"{layout.pool_parts(round_)} holds a part of another import, which was not finished: call that "
                "one again, or remove the folder"
            )
        progress.update(len(part))
        present = int(record.get("present", 0))  # a release before did not count them
        left_out = list(record["left_out"])
        return Imported(len(part) - present - len(left_out), present, left_out)
    rows: list[PoolInstance] = []
    left_out = []

    def add(name: str, instance: ForeignInstance) -> PoolInstance | str | None:
        try:
            return _add(layout, round_, name, instance, before)
        except BadImage as error:
            return str(error)

    for result in threads.map(add, names, part):
        if isinstance(result, PoolInstance):
            rows.append(result)
        elif result is not None:
            left_out.append(result)
        progress.update()
    files.flush_all()  # cut-outs, which were not flushed one by one
    write_part(layout, round_, number, rows)
    present = len(part) - len(rows) - len(left_out)
    files.write_json(done, {"origins": digest, "present": present, "left_out": left_out})
    return Imported(len(rows), present, left_out)


def finish_import(layout: RunLayout, round_: int, categories: Sequence[dict[str, Any]]) -> None:
    """Writes the categories and the marker of a round whose index is there."""
    write_categories(layout, categories)
    files.write_done(layout.annotations_done(round_))


def _parts(foreign: Iterable[ForeignInstance]) -> Iterator[list[ForeignInstance]]:
    remaining = iter(foreign)
    while part := list(itertools.islice(remaining, _PART)):
        yield part


def _add(
    layout: RunLayout, round_: int, name: str, instance: ForeignInstance, before: _Before
) -> PoolInstance | None:
    """Writes the cut-out of an instance, and returns its row of the index, or None where it is there."""
    rgba = instance.load()
    alpha = rgba[..., 3]
    found = outline(alpha)
    if not found["segmentation"]:
        raise BadImage(f"{instance.origin} shows no object: nothing has alpha above 0")
    cutout = encode_cutout(rgba, alpha, found["bbox"])
    if before.holds(instance, cutout):
        return None
    files.write_bytes(layout.cutout(name), cutout, durable=False)
    return PoolInstance(
        file=name,
        round=round_,
        category_id=instance.category_id,
        width=rgba.shape[1],
        height=rgba.shape[0],
        **found,
        objects=1,
        clip_white=None,
        clip_black=None,
        reason="",
        seed=0,
        model=before.source,
        prompt=instance.origin,
        cutout=layout.cutout_name(name),
    )
