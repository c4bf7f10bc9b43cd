"""Adds finished cut-outs from elsewhere to a pool, as a round of their own."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from diSegmenter.annotate import outline
from diSegmenter.pool.annotation_file import joined_categories, write_categories
from diSegmenter.pool.foreign import ForeignInstance
from exchange import files
from exchange.cutouts import encode_cutout
from exchange.errors import UserError
from exchange.images import BadImage
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_index import PoolInstance, join_parts, write_part
from exchange.threads import side_by_side

_PART = 4096


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
    foreign: Iterable[ForeignInstance],
    categories: Sequence[dict[str, Any]],
    source: str,
    workers: int = 4,
) -> tuple[int, list[str]]:
    """Brings the instances of another pool into this one, as its next round, in parts of a few thousand.

    A part that is whole stays when the import is killed, and the next call, which must be for the same pool, goes on
    behind it. Memory is that of one part.

    Args:
        categories: the data set's category records, which the pool keeps.
        source: what the index shall say about where they come from.

    Returns:
        How many instances there are now, and a sentence for each one that was left out.

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
        tqdm(desc="import", unit=" instances") as progress,
    ):
        categories = joined_categories(layout, categories)
        round_ = _round_to_import(layout)
        for part in _parts(foreign):
            names = numbered(layout, round_, [instance.category_id for instance in part], counts)
            left_out += _import_part(layout, round_, parts, names, part, source, threads, progress)
            parts += 1
        if len(left_out) == counts.total():
            files.remove_folder(layout.pool_parts(round_))
            first = left_out[0] if left_out else "there is none"
            raise UserError(f"none of {len(left_out)} instances can be imported: {first}")
        count = join_parts(layout, round_, parts)
        finish_import(layout, round_, categories)
        files.remove_folder(layout.pool_parts(round_))
    return count, left_out


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
    source: str,
    threads: ThreadPoolExecutor,
    progress: "tqdm[None]",
) -> list[str]:
    """Imports a part unless it is there; returns a sentence for each instance that was left out."""
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
        return list(record["left_out"])
    rows: list[PoolInstance] = []
    left_out: list[str] = []

    def add(name: str, instance: ForeignInstance) -> PoolInstance | str:
        try:
            return _add(layout, round_, name, instance, source)
        except BadImage as error:
            return str(error)

    for result in threads.map(add, names, part):
        (rows if isinstance(result, PoolInstance) else left_out).append(result)
        progress.update()
    files.flush_all()  # cut-outs, which were not flushed one by one
    write_part(layout, round_, number, rows)
    files.write_json(done, {"origins": digest, "left_out": left_out})
    return left_out


def finish_import(layout: RunLayout, round_: int, categories: Sequence[dict[str, Any]]) -> None:
    """Writes the categories and the marker of a round whose index is there."""
    write_categories(layout, categories)
    files.write_done(layout.annotations_done(round_))


def _parts(foreign: Iterable[ForeignInstance]) -> Iterator[list[ForeignInstance]]:
    remaining = iter(foreign)
    while part := list(itertools.islice(remaining, _PART)):
        yield part


def _add(layout: RunLayout, round_: int, name: str, instance: ForeignInstance, source: str) -> PoolInstance:
    rgba = instance.load()
    alpha = rgba[..., 3]
    found = outline(alpha)
    if not found["segmentation"]:
        raise BadImage(f"{instance.origin} shows no object: nothing has alpha above 0")
    files.write_bytes(layout.cutout(name), encode_cutout(rgba, alpha, found["bbox"]), durable=False)
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
        model=source,
        prompt=instance.origin,
        cutout=layout.cutout_name(name),
    )
