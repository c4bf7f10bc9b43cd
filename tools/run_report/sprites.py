"""Thumbnails of what a run made, many on a sheet, with the record of each beside it: what the page loads on demand."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tqdm import tqdm

from diSegmenter.report import over_checkerboard
from exchange import files
from exchange.errors import UserError
from exchange.images import BadImage, decode_rgba, read_rgba
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance
from exchange.pool_index import PoolIndex
from tools.outlines import PASTED
from tools.run_report.content import Round

SIDE = 96  # pixels of a thumbnail
COLUMNS = 8
PER_SHEET = COLUMNS * COLUMNS
_QUALITY = 65  # 2 KB a thumbnail: 100 MB for 48,000 of them


def write_sheets(
    layout: RunLayout, rounds: Sequence[Round], folder: str, address: str
) -> dict[int, list[str]]:
    """Writes the sheets of a run, ``rdNN_KKK.webp`` and ``.js``, into ``folder``; of the pictures, what is missing.

    Args:
        address: of ``folder``, as the page names it.

    Returns:
        The addresses of the sheets, without their ends, that hold instances of a class, by class.
    """
    index = files.join(folder, "sheets.json")
    drawn: dict[str, str] = files.read_json(index) if files.exists(index) else {}
    sheets: dict[int, list[str]] = defaultdict(list)
    digests = {}
    pools = [round_.pool for round_ in rounds if round_.pool is not None]
    several = len({model for pool in pools for model in pool.column("model")}) > 1
    for round_ in rounds:
        if round_.pool is None:
            continue
        pool = round_.pool
        made = {i.file: i for manifest in round_.manifests for i in manifest.instances}
        order = np.argsort(pool.category_ids, kind="stable")
        columns = {name: pool.column(name) for name in _COLUMNS}
        starts = range(0, len(order), PER_SHEET)
        for start in tqdm(starts, f"thumbnails of round {round_.number}", unit=" sheets", delay=2):
            rows = order[start : start + PER_SHEET]
            name = f"rd{round_.number:02}_{start // PER_SHEET:03}"
            digests[name] = _digest(columns, rows)
            picture = files.join(folder, f"{name}.webp")
            if drawn.get(name) != digests[name] or not files.exists(picture):
                files.write_bytes(picture, sheet(layout, pool, rows.tolist()), durable=False)
            records = json.dumps([_record(columns, int(row), made, several) for row in rows])
            script = f"showSheet({json.dumps(f'{address}/{name}')}, {records})"
            files.write_bytes(files.join(folder, f"{name}.js"), script.encode(), durable=False)
            for category_id in np.unique(pool.category_ids[rows]).tolist():
                sheets[category_id].append(f"{address}/{name}")
    files.write_json(index, digests)
    return sheets


def sheet(layout: RunLayout, pool: PoolIndex, rows: Sequence[int]) -> bytes:
    """A WebP file with the thumbnails of some instances, ``COLUMNS`` in a line."""
    picture = Image.new("RGB", (COLUMNS * SIDE, -(-len(rows) // COLUMNS) * SIDE), (255, 255, 255))
    for place, row in enumerate(rows):
        picture.paste(_thumbnail(layout, pool, row), (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()


_MEASURES = ("similarity", "judge")
_COLUMNS = (
    *("file", "category_id", "round", "prompt", "seed", "clip_white", "clip_black", "reason", "area"),
    "model",
    *_MEASURES,
)


def _digest(columns: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[np.int64]) -> str:
    """Of what the thumbnails of ``rows`` show."""
    shown = [columns[name][rows].tolist() for name in ("file", "seed", "area")]
    return hashlib.blake2b(json.dumps(shown).encode(), digest_size=8).hexdigest()


def _record(
    columns: Mapping[str, npt.NDArray[Any]],
    row: int,
    made: Mapping[str, GeneratedInstance],
    several_models: bool,
) -> list[Any]:
    """Class, round, prompt, seed, criterion before and after, CLIP scores, reason, guidance and file of an instance;
    what else is known of it, by its name on the page.
    """
    of = {name: values[row].item() if name in _NUMBERS else values[row] for name, values in columns.items()}
    scores = [None if np.isnan(of[name]) else round(of[name], 2) for name in ("clip_white", "clip_black")]
    generated = made.get(of["file"])
    criterion = [None if v is None else round(v, 4) for v in _criteria(generated)]
    guided = None if generated is None else generated.guided
    seed = str(of["seed"])  # which may be beyond the whole numbers of JavaScript
    place = [of["category_id"], of["round"], of["prompt"], seed]
    known = {name: round(of[name], 3) for name in _MEASURES if not np.isnan(of[name])}
    if several_models:
        known["drawn by"] = of["model"]
    return [*place, *criterion, *scores, of["reason"], guided, of["file"], known]


_NUMBERS = {"category_id", "round", "seed", "clip_white", "clip_black", "area", *_MEASURES}


def _criteria(generated: GeneratedInstance | None) -> tuple[float | None, float | None]:
    return (None, None) if generated is None else (generated.criterion_before, generated.criterion_after)


def _thumbnail(layout: RunLayout, pool: PoolIndex, row: int) -> Image.Image:
    """The image with its mask's outline; the cut-out where only that is left, grey where nothing is."""
    instance = pool[row]
    try:
        image = Image.fromarray(read_rgba(layout.raw(instance.file))[..., :3])
    except BadImage:
        return _cut_out(pool, row)
    scale = SIDE / max(image.size)
    size = [max(1, round(extent * scale)) for extent in image.size]
    thumbnail = image.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=2)
    draw = ImageDraw.Draw(thumbnail)
    for polygon in instance.segmentation:
        corners = [scale * (value + 0.5) for value in polygon]
        draw.line([*corners, *corners[:2]], fill=PASTED)
    return thumbnail


def _cut_out(pool: PoolIndex, row: int) -> Image.Image:
    try:
        pixels = decode_rgba(pool.read(row), pool.name(row))
    except (BadImage, UserError):  # a dropped one has no cut-out after pruning
        return Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
    cut_out = Image.fromarray(over_checkerboard(pixels, pixels[..., 3]))
    cut_out.thumbnail((SIDE, SIDE))
    return cut_out
