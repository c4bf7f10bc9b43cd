"""Pictures that stand on the page itself: training images, with what was pasted into them, and allocations."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from exchange import files
from exchange.images import read_record
from exchange.layout import RunLayout
from exchange.pasted import Pasted
from tools.run_report.content import Round


@dataclass(frozen=True)
class TrainingPicture:
    """``url``: the picture, as a data URL; ``pasted``: file name and category id of the instances in it, by the number
    of the training image."""

    url: str
    pasted: dict[int, list[tuple[str, int]]]


def training_pictures(layout: RunLayout, rounds: Sequence[Round]) -> dict[int, TrainingPicture]:
    """Those that there are, by round."""
    found = {}
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
        found[round_.number] = TrainingPicture(_file_url(path), dict(pasted))
    return found


def allocation_pictures(layout: RunLayout, rounds: Sequence[Round]) -> dict[int, str]:
    """How the images of each round were divided among the classes, as data URLs, where there is a picture of it."""
    paths = {r.number: files.join(layout.pictures_dir, f"allocation_rd{r.number:02}.png") for r in rounds}
    return {number: _file_url(path) for number, path in paths.items() if files.exists(path)}


def data_url(image: Image.Image) -> str:
    """An image as the page holds it."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", quality=75)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _file_url(path: str) -> str:
    with Image.open(io.BytesIO(files.read_bytes(path))) as image:
        return data_url(image)
