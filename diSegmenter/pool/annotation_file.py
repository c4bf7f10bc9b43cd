"""The pool as one annotation file, written in one go from the indexes of its rounds, one round in memory at a time."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from exchange import files
from exchange.annotations import read_annotations
from exchange.errors import UserError
from exchange.files import compact_json
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance

_OF_ROUNDS = re.compile(rb'\{"info":\{[^}]*"rounds":\[([\d,]+)\]')  # the beginning of a file
_BEGINNING = 1 << 16  # bytes: more than it takes


def write_categories(layout: RunLayout, categories: Sequence[dict[str, Any]]) -> None:
    """Writes down which categories the instances of the pool are of."""
    content = {"images": [], "annotations": [], "categories": list(categories)}
    files.write_json(layout.pool_categories(), content)


def joined_categories(layout: RunLayout, categories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The categories that the pool is for, if it says so, and ``categories``, of what is to come in.

    Raises UserError where one of them has another name in the pool: its instances would be of a class that they do not
    show.
    """
    path = layout.pool_categories()
    known = {c["id"]: c for c in read_annotations(path).categories} if files.exists(path) else {}
    for category in categories:
        there = known.setdefault(category["id"], category)
        if there["name"] != category["name"]:
            raise UserError(
                f"category {category['id']} of what comes in is {category['name']!r}, but {there['name']!r} in {path}: "
                "use another run folder, as a pool is for one data set"
            )
    return [known[category_id] for category_id in sorted(known)]


def write_lvis(path: str, layout: RunLayout, rounds: Sequence[int], categories: list[dict[str, Any]]) -> int:
    """Writes the kept instances of ``rounds`` in LVIS format to ``path``, whole or not at all; returns how many.

    One image and one annotation for each instance, numbered from 1; ``info.rounds`` are ``rounds``.

    Raises UserError where the index of a round is missing or damaged.
    """
    count = 0
    with files.atomic_writer(path) as file:
        info = {"description": "generated instances to paste", "rounds": list(rounds)}
        file.write(b'{"info":' + compact_json(info) + b',"images":[')
        for count, (name, width, height) in enumerate(_images(layout, rounds), start=1):
            image = {"id": count, "file_name": name, "width": width, "height": height}
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
            file.write(b"," * (count > 1) + compact_json(image))
        file.write(b'],"annotations":[')
        instances = (instance for round_ in rounds for instance in PoolIndex(layout, [round_]))
        told = tqdm(instances, "annotations", count, unit=" instances", delay=2)
        for number, instance in enumerate(told, start=1):
            file.write(b"," * (number > 1) + compact_json(_annotation(number, instance)))
        file.write(b'],"categories":' + compact_json(categories) + b"}")
    return count


def renew_lvis(layout: RunLayout, round_: int, categories: Sequence[dict[str, Any]]) -> None:
    """Writes the annotation file of a round again, if it has one, since the pool up to there has changed.

    It stays one of the rounds that it says (SEGMENTER.LATEST_ROUND_ONLY); where it says none, it is one of all up to
    there.
    """
    path = layout.annotations(round_)
    if not files.exists(path):
        return
    rounds = [r for r in layout.pool_rounds() if r <= round_]
    with files.open_to_read(path) as file:
        if said := _OF_ROUNDS.match(file.read(_BEGINNING)):
            rounds = [int(r) for r in said[1].split(b",")]
    write_lvis(path, layout, rounds, list(categories))


def _images(layout: RunLayout, rounds: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    for round_ in rounds:
        index = PoolIndex(layout, [round_])
        yield from zip(*(index.column(name).tolist() for name in ("file", "width", "height")), strict=True)


def _annotation(number: int, instance: PoolInstance) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": number,
        "category_id": instance.category_id,
        "bbox": instance.bbox,
        "area": instance.area,
        "segmentation": instance.segmentation,
        "iscrowd": 0,
        "round": instance.round,
        "clip_score": instance.clip_score,
    }
