"""Pictures of the page: training images beside it, with what was pasted into them, and allocations on it."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from exchange import files
from exchange.images import read_record
from exchange.layout import RunLayout
from exchange.pasted import Pasted
from tools.run_report.content import Round

_WRITTEN = re.compile(r"training_rd.*\.webp")  # whole: not what another process is about to write


@dataclass(frozen=True)
class TrainingPicture:
    """``url``: of the picture, as the page names it; ``pasted``: file name and category id of the instances in it, by
    the number of the training image."""

    url: str
    pasted: dict[int, list[tuple[str, int]]]


def training_pictures(
    layout: RunLayout, rounds: Sequence[Round], folder: str, address: str
) -> dict[int, TrainingPicture]:
    """Those that there are, by round, each written into ``folder`` once: a page with all of them would take, and be,
    more from round to round. Older ones there are removed.

    ``address``: of ``folder``, as the page names it.
    """
    found, shown = {}, set()
    there = {match[0] for match in files.matches(folder, _WRITTEN)}
    for round_ in rounds:
        names = (f"{kind}_rd{round_.number:02}.png" for kind in ("training", "data"))
        paths = [files.join(layout.pictures_dir, name) for name in names]
        path = next((path for path in paths if files.exists(path)), None)
        if path is None:
            continue
        pasted = defaultdict(list)
        record = read_record(Pasted, path) or Pasted([], [], [])  # older pictures have none
        for image, *instance in zip(record.images, record.files, record.categories, strict=False):
            pasted[image].append((instance[0], instance[1]))
        data = files.read_bytes(path)
        digest = hashlib.blake2b(data, digest_size=4).hexdigest()
        shown.add(name := f"training_rd{round_.number:02}_{digest}.webp")
        if name not in there:
            picture = _as_webp(Image.open(io.BytesIO(data)))
            files.write_bytes(files.join(folder, name), picture, durable=False)
        found[round_.number] = TrainingPicture(f"{address}/{name}", dict(pasted))
    for name in there - shown:
        files.remove(files.join(folder, name))
    return found


def allocation_pictures(layout: RunLayout, rounds: Sequence[Round]) -> dict[int, str]:
    """How the images of each round were divided among the classes, as data URLs, where there is a picture of it."""
    paths = {r.number: files.join(layout.pictures_dir, f"allocation_rd{r.number:02}.png") for r in rounds}
    found = {number: path for number, path in paths.items() if files.exists(path)}
    return {n: data_url(Image.open(io.BytesIO(files.read_bytes(path)))) for n, path in found.items()}


def data_url(image: Image.Image) -> str:
    """An image as the page holds it."""
    return f"data:image/webp;base64,{base64.b64encode(_as_webp(image)).decode()}"


def _as_webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", quality=75)
    return buffer.getvalue()
