"""Takes out of a pool what it does not need."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from tqdm import tqdm

from diSegmenter.pool.annotation_file import renew_lvis
from exchange import files
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex

_DUPLICATE = "duplicate"


def prune_originals(layout: RunLayout, round_: int) -> int:
    """Removes the generated images and masks of a finished round that are there; returns how many.

    Training reads the cut-outs, and a finished round is not cut out again; what is lost is the picture in a
    later contact sheet.
    """
    listed = set(PoolIndex(layout, [round_], dropped_too=True).column("file").tolist())
    present = [
        path(name)
        for path in (layout.raw, layout.segmented)
        for name in listed.intersection(files.list_dir(path("")))
    ]
    return _remove(present)


def prune_dropped(layout: RunLayout, round_: int) -> int:
    """Removes the cut-outs of dropped instances of a round; returns how many.

    To bring one of them back by another threshold, stage 2 must cut it out again.
    """
    index = PoolIndex(layout, [round_], dropped_too=True)
    single = (index.column("reason") != "") & (index.column("length") < 0)
    paths = [layout.pool(cutout) for cutout in index.column("cutout")[single]]
    present = [path for path in paths if files.exists(path)]
    return _remove(present)


def prune_duplicates(layout: RunLayout, categories: Sequence[dict[str, Any]]) -> int:
    """Drops every instance whose cut-out equals that of an earlier one, bit by bit; returns how many.

    A call that is killed is made good by the same call.
    """
    seen: set[bytes] = set()
    total, changed = 0, False
    for round_ in layout.pool_rounds():
        index = PoolIndex(layout, [round_], dropped_too=True)
        reasons = index.column("reason")
        doubled = []
        for row in tqdm(np.flatnonzero(reasons == "").tolist(), f"round {round_}", unit=" instances"):
            digest = sha256(index.read(row)).digest()
            if digest in seen:
                doubled.append(row)
            seen.add(digest)
        reasons[doubled] = _DUPLICATE
        if doubled:
            index.write_as(layout, round_, reason=reasons)
        total += len(doubled)
        changed = changed or bool((reasons == _DUPLICATE).any())
        if changed:
            renew_lvis(layout, round_, categories)
    return total


def _remove(paths: Sequence[str]) -> int:
    for path in tqdm(paths, "remove", unit=" files", delay=2):
        files.remove(path)
    return len(paths)
