"""Adds finished cut-outs from elsewhere to a pool, as a round of their own."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from diSegmenter.annotate import outline
from diSegmenter.pool.annotation_file import write_categories
from diSegmenter.pool.foreign import ForeignInstance
from exchange import files
from exchange.errors import UserError
from exchange.images import BadImage, encode_cutout
from exchange.layout import RunLayout
from exchange.pool_index import PoolInstance, write_index

_CHUNK = 512
_log = logging.getLogger(__name__)


def next_round(layout: RunLayout) -> int:
    """The first round number after those in the pool."""
    return max(layout.pool_rounds(), default=-1) + 1


def import_round(
    layout: RunLayout,
    foreign: Iterable[ForeignInstance],
    categories: Sequence[dict[str, Any]],
    source: str,
    workers: int = 4,
) -> tuple[int, list[str]]:
    """Brings the instances of another pool into this one, as its next round.

    Args:
        categories: the data set's category records, which the pool keeps.
        source: what the index shall say about where they come from.

    Returns:
        How many instances there are now, and a sentence for each one that was left out.
    """
    round_ = next_round(layout)
    counts: Counter[int] = Counter()
    rows: list[PoolInstance] = []
    left_out: list[str] = []

    def add(name: str, instance: ForeignInstance) -> PoolInstance | str:
        try:
            return _add(layout, round_, name, instance, source)
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(workers) as threads, tqdm(desc="import", unit=" instances") as progress:
        for chunk in _chunks(foreign):
            names = []
            for instance in chunk:
                names.append(layout.instance_name(round_, instance.category_id, counts[instance.category_id]))
                counts[instance.category_id] += 1
            for result in threads.map(add, names, chunk):
                (rows if isinstance(result, PoolInstance) else left_out).append(result)
                progress.update()
    if not rows:
        raise UserError(f"none of {len(left_out)} instances can be imported; the first: {left_out[:1]}")
    write_index(layout, round_, sorted(rows, key=lambda row: row.file))
    finish_import(layout, round_, categories)
    return len(rows), left_out


def finish_import(layout: RunLayout, round_: int, categories: Sequence[dict[str, Any]]) -> None:
    """Writes the categories and the marker of a round whose index is there."""
    write_categories(layout, categories)
    files.write_done(layout.annotations_done(round_))


def _chunks(foreign: Iterable[ForeignInstance]) -> Iterable[list[ForeignInstance]]:
    chunk: list[ForeignInstance] = []
    for instance in foreign:
        chunk.append(instance)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    yield chunk


def _add(layout: RunLayout, round_: int, name: str, instance: ForeignInstance, source: str) -> PoolInstance:
    rgba = instance.load()
    alpha = rgba[..., 3]
    found = outline(alpha)
    if not found["segmentation"]:
        raise BadImage(f"{instance.origin} shows no object: nothing has alpha above 0")
    files.write_bytes(layout.cutout(name), encode_cutout(rgba, alpha, found["bbox"]))
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
