"""A pool of two rounds on disk, as single files or packed, and how a row of its index is changed."""

import dataclasses

import numpy as np
import pytest

from diSegmenter.annotate import outline
from diSegmenter.pool import move
from diSegmenter.pool.annotation_file import write_lvis
from diSegmenter.pool.move import pack
from exchange import files
from exchange.cutouts import encode_cutout
from exchange.images import decode_rgba
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, write_index
from tests.diSegmenter.conftest import CATEGORIES, disc_image, pool_instance

IDS = {category["id"] for category in CATEGORIES}
NAMES = {category["id"]: category["name"] for category in CATEGORIES}


@pytest.fixture
def layout(tmp_path):
    """A pool of two rounds, each with three kept pieces of discs, one dropped, and an image without an object."""
    layout, random = RunLayout(str(tmp_path / "run")), np.random.default_rng(0)
    for round_ in (0, 1):
        rows = []
        for number in range(4):
            category = CATEGORIES[number % 2]["id"]
            name = layout.instance_name(round_, category, number)
            alpha = np.where(disc_image(5 + number + 4 * round_)[..., 1] < 255, 255, 0).astype(np.uint8)
            alpha[20 + number :] = 0  # wider than high
            image, found = random.integers(0, 256, (40, 48, 3), dtype=np.uint8), outline(alpha)
            files.write_bytes(layout.cutout(name), encode_cutout(image, alpha, found["bbox"]))
            files.write_bytes(layout.raw(name), b"raw")
            files.write_bytes(layout.segmented(name), b"alpha")
            reason = "CLIP score" if number == 3 else ""
            values = found | {"clip_black": 26.0 + number, "reason": reason}
            rows.append(pool_instance(round_, category, number, **values))
        nothing = outline(np.zeros((40, 48), np.uint8)) | {"reason": "no object"}
        rows.insert(3, pool_instance(round_, 3, 9, **nothing))
        write_index(layout, round_, rows)
        write_lvis(layout.annotations(round_), layout, range(round_ + 1), CATEGORIES)
        files.write_done(layout.annotations_done(round_))
    return layout


@pytest.fixture(params=[(), (0,), (0, 1)], ids=["single files", "half packed", "packed"])
def pool(layout, request, monkeypatch):
    """The same pool in each form, packed into tar files of three."""
    monkeypatch.setattr(move, "_FILES_PER_PACK", 3)
    for round_ in request.param:
        pack(layout, round_)
    return layout


def pixels(layout, dropped_too=False):
    """Category, size and every byte of each cut-out."""
    index = PoolIndex(layout, layout.pool_rounds(), dropped_too)
    instances = [(row, instance) for row, instance in enumerate(index) if instance.area]
    cutouts = [(i.category_id, decode_rgba(index.read(row), "")) for row, i in instances]
    return [(category, cutout.shape, cutout.tobytes()) for category, cutout in cutouts]


def change(layout, round_, row, **values):
    rows = list(PoolIndex(layout, [round_], dropped_too=True))
    rows[row] = dataclasses.replace(rows[row], **values)
    write_index(layout, round_, rows)
