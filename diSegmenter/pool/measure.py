"""Features of the kept cut-outs of a pool by an image encoder, for what ``mrca pool stats`` says of their diversity."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from diSegmenter.cut_out import on_white_square
from exchange import files, pool_features
from exchange.errors import UserError
from exchange.images import BadImage, decode_rgba
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_features import PoolFeatures
from exchange.pool_index import PoolIndex
from exchange.threads import side_by_side

PART = 4096  # instances that are written together, and lost when a call is killed
_BATCH = 32
_READERS = 8  # threads
_log = logging.getLogger(__name__)

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]


def measure(
    layout: RunLayout, load: Callable[[], Encode], made_from: dict[str, Any]
) -> Iterator[tuple[int, int, int]]:
    """Encodes those kept instances of each round that have no features yet; those of another encoder are removed.

    Args:
        load: gives the encoder, from pictures, uint8 (H, W, 3) each, to unit vectors (N, D); not called where there is
            nothing to do.
        made_from: what says which encoder it is, in JSON.

    Yields:
        A round, how many of it were measured now, and how many it keeps.

    Raises:
        UserError: a cut-out is missing or damaged.
    """
    encode = functools.cache(load)
    with only_one(layout, "measure"), side_by_side(_READERS) as threads:
        files.remove_leftovers(layout.pool("features"))
        pool_features.begin(layout, made_from)
        for round_ in layout.pool_rounds():
            _remove_damaged(layout, round_)
            index = PoolIndex(layout, [round_])
            names = index.column("file").tolist()
            missing = np.flatnonzero(PoolFeatures(layout, [round_]).rows(names) < 0).tolist()
            with tqdm(desc=f"measure round {round_}", total=len(missing), unit=" instances") as progress:
                for part in _pieces(missing, PART):
                    vectors = []
                    for rows in _pieces(part, _BATCH):
                        pictures = list(threads.map(functools.partial(_picture, index), rows))
                        vectors.append(encode()(pictures))
                        progress.update(len(rows))
                    part_names = [names[row] for row in part]
                    pool_features.add_features(layout, round_, part_names, np.concatenate(vectors))
            yield round_, len(missing), len(index)


def _picture(index: PoolIndex, row: int) -> np.ndarray:
    try:
        return on_white_square(decode_rgba(index.read(row), index.name(row)))
    except BadImage as error:
        raise UserError(f"{error}: mrca pool verify names everything that is damaged") from error


def _remove_damaged(layout: RunLayout, round_: int) -> None:
    for part in layout.feature_parts(round_):
        path = layout.features(round_, part)
        try:
            pool_features.read_part(path)
        except UserError as error:
            _log.warning("%s", error)
            files.remove(path)


def _pieces(rows: list[int], length: int) -> list[list[int]]:
    return [rows[start : start + length] for start in range(0, len(rows), length)]
