"""Copies pools into one another, out to other formats, and into fewer files."""

import io
import itertools
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from diSegmenter.pool.add import finish_import, next_round, numbered
from diSegmenter.pool.annotation_file import joined_categories, write_lvis
from exchange import files
from exchange.images import decode_rgba, encode_png
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_index import PoolIndex

_FILES_PER_PACK = 10_000


def merge(layout: RunLayout, other: RunLayout, categories: Sequence[dict[str, Any]]) -> int:
    """Appends each round of ``other`` to the pool of ``layout`` as a new round; returns how many came.

    A round that a call before has copied stays as it is, so a call that is killed is made good by the same call.

    Raises UserError where another process is importing or merging, and for categories of another data set.
    """
    total = 0
    with only_one(layout, "import"):
        categories = joined_categories(layout, categories)
        present = {round_: PoolIndex(layout, [round_], dropped_too=True) for round_ in layout.pool_rounds()}
        for round_ in other.pool_rounds():
            index = PoolIndex(other, [round_])
            copy = next((target for target, here in present.items() if _is_copy(here, index)), None)
            if copy is not None:
                del present[copy]  # another round of the same content is copied, too
                finish_import(layout, copy, categories)
                continue
            target = next_round(layout)
            names = numbered(layout, target, index.category_ids.tolist(), Counter())
            for row in tqdm(range(len(index)), desc=f"merge round {round_}", unit=" instances"):
                files.write_bytes(layout.cutout(names[row]), index.read(row), durable=False)
            files.flush_all()  # cut-outs, which were not flushed one by one
            index.write_as(
                layout,
                target,
                file=np.array(names, object),
                round=np.full(len(index), target),
                cutout=np.array([layout.cutout_name(name) for name in names], object),
                offset=np.zeros(len(index), np.int64),
                length=np.full(len(index), -1),
            )
            finish_import(layout, target, categories)
            total += len(index)
    return total


def _is_copy(here: PoolIndex, index: PoolIndex) -> bool:
    """Whether a round came from one of another pool, as merging gives names and places; some may be dropped since."""
    told = ("category_id", "width", "height", "area", "seed", "model", "prompt")
    if not all(np.array_equal(here.column(name), index.column(name)) for name in told):
        return False
    kept = np.flatnonzero(here.column("reason") == "").tolist()  # cut-outs of the others may be gone
    rows = tqdm(kept, "compare with what is there", unit=" instances", delay=2)
    return all(here.read(row) == index.read(row) for row in rows)


def folder_name(category: str) -> str:
    """A name for the folder of a category, another one for each; ``urllib.parse.unquote`` leads back."""
    return category.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")


def export_folders(layout: RunLayout, names: Mapping[int, str], out: str) -> None:
    """Writes ``images``, a folder of RGBA PNG images for each class, and X-Paste's list of them."""
    index = PoolIndex(layout, layout.pool_rounds())
    paths: dict[str, list[str]] = {}
    class_index = {category_id: place for place, category_id in enumerate(sorted(names))}
    for row in tqdm(range(len(index)), desc="export", unit=" instances"):
        instance = index[row]
        path = files.join(out, "images", folder_name(names[instance.category_id]), instance.file)
        files.write_bytes(path, encode_png(decode_rgba(index.read(row), index.name(row))), durable=False)
        paths.setdefault(str(class_index[instance.category_id]), []).append(f"*{path}")
    files.flush_all()
    files.write_json(files.join(out, "LVIS_instance_pools.json"), paths)


def export_coco(layout: RunLayout, categories: Sequence[dict[str, Any]], out: str) -> None:
    """Writes ``annotations.json`` and the cut-outs as RGBA PNG images, each on its own canvas."""
    index = PoolIndex(layout, layout.pool_rounds())
    for row in tqdm(range(len(index)), desc="export", unit=" instances"):
        instance = index[row]
        x, y, width, height = instance.bbox
        canvas = np.zeros((instance.height, instance.width, 4), np.uint8)
        canvas[y : y + height, x : x + width] = decode_rgba(index.read(row), index.name(row))
        files.write_bytes(files.join(out, "images", instance.file), encode_png(canvas), durable=False)
    files.flush_all()
    export_annotations(layout, categories, out)


def export_annotations(layout: RunLayout, categories: Sequence[dict[str, Any]], out: str) -> None:
    """Writes ``annotations.json``: all of the pool in LVIS format, by the names of the generated images."""
    write_lvis(files.join(out, "annotations.json"), layout, layout.pool_rounds(), list(categories))


def pack(layout: RunLayout, round_: int) -> int:
    """Moves the cut-outs of a round into tar files (WebDataset's layout), read by offset; returns how many.

    For file systems that take badly to a file per instance. The tar files are written first, then the index
    that points into them, then the single files go: what a crash leaves is whole. No tar file that the index
    points into already is written again; single files that a killed call left behind go with the next one. A
    dropped instance without an object, or whose cut-out was pruned, has nothing to move.
    """
    index = PoolIndex(layout, [round_], dropped_too=True)
    fields = ("cutout", "offset", "length", "reason")
    cutouts, offsets, lengths, reasons = (index.column(name) for name in fields)
    single = [
        row
        for row in np.flatnonzero(lengths < 0).tolist()
        if not reasons[row] or files.exists(layout.pool(cutouts[row]))
    ]
    loose, taken = cutouts[single].tolist(), set(cutouts[lengths >= 0].tolist())
    names = (f"cutouts/rd{round_:02}_{number:04}.tar" for number in itertools.count())
    free = (name for name in names if name not in taken)
    with tqdm(desc=f"pack round {round_}", total=len(single), unit=" instances") as progress:
        for start, name in zip(range(0, len(single), _FILES_PER_PACK), free, strict=False):
            with files.atomic_writer(layout.pool(name)) as file:
                tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
                for row in single[start : start + _FILES_PER_PACK]:
                    data = files.read_bytes(layout.pool(cutouts[row]))
                    member = tarfile.TarInfo(PurePosixPath(cutouts[row]).name)
                    member.size = len(data)
                    cutouts[row], offsets[row], lengths[row] = name, tar.offset + tarfile.BLOCKSIZE, len(data)
                    tar.addfile(member, io.BytesIO(data))
                    progress.update()
                tar.close()
    index.write_as(layout, round_, cutout=cutouts, offset=offsets, length=lengths)
    packed = map(layout.cutout_name, index.column("file")[lengths >= 0].tolist())
    there = {f"cutouts/{name}" for name in files.names(layout.pool("cutouts"), f"{round_:02}_")}
    for path in tqdm({*loose, *there.intersection(packed)}, "remove single files", unit=" files", delay=2):
        files.remove(layout.pool(path))
    return len(loose)
