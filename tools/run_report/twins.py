"""Guided images beside what they are without guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from exchange.images import BadImage, read_rgba
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance
from exchange.twins import read_twins
from tools.run_report.content import Round
from tools.run_report.pictures import data_url

_SIDE = 128  # pixels of a picture


@dataclass(frozen=True)
class Pair:
    """A guided image and its twin: pictures as data URLs (None for a guided image that is gone), the criterion of both
    finished images."""

    made: GeneratedInstance
    without: str
    guided: str | None
    criterion_without: float | None


def read_pairs(layout: RunLayout, rounds: Sequence[Round]) -> Mapping[int, list[Pair]]:
    """By round, those of each round that has twins."""
    found = {}
    for round_ in rounds:
        made = {i.file: i for manifest in round_.manifests for i in manifest.instances}
        try:
            twins = read_twins(layout.twins(round_.number))
        except BadImage:
            twins = None
        if twins is None:
            continue
        found[round_.number] = [
            Pair(made[file], _picture(pixels), _guided(layout, file), criterion)
            for file, criterion, pixels in zip(twins[0].files, twins[0].criterion, twins[1], strict=True)
            if file in made
        ]
    return found


def _guided(layout: RunLayout, file: str) -> str | None:
    try:
        return _picture(read_rgba(layout.raw(file))[..., :3])
    except BadImage:
        return None


def _picture(pixels: npt.NDArray[np.uint8]) -> str:
    """An image, uint8 (H, W, 3), within 128 pixels a side, as a data URL."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(extent * scale)) for extent in image.size)
    return data_url(image.resize((width, height), Image.Resampling.BILINEAR))
