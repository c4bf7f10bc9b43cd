"""A picture of a round: what was generated, how it was cut out, whether it was kept and with which score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diSegmenter.images import UnreadableImage, read_rgba
from exchange.layout import RunLayout
from exchange.pool_index import PoolInstance

LIMIT = 48  # cells of a sheet
_TILE, _GAP, _TEXT, _COLUMNS = 112, 10, 34, 6
_KEPT, _DROPPED, _INK, _PAPER = (22, 130, 60), (190, 40, 40), (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class Entry:
    """One cell: uint8 image (H, W, 4), alpha mask (H, W), and what to write under them."""

    image: np.ndarray
    alpha: np.ndarray
    name: str
    score: float
    reason: str


def contact_sheet(
    layout: RunLayout,
    title: str,
    instances: Sequence[PoolInstance],
    names: Mapping[int, str],
    limit: int = LIMIT,
) -> Image.Image:
    """A picture of up to ``limit`` of ``instances``, spread evenly; those whose images are gone are left out."""
    entries = []
    for instance in instances[:: max(-(-len(instances) // limit), 1)]:
        try:
            image = read_rgba(layout.raw(instance.file))
            alpha = read_rgba(layout.segmented(instance.file))[..., 0]
        except UnreadableImage:
            continue
        name, score = names[instance.category_id], instance.clip_score or 0.0
        entries.append(Entry(image, alpha, name, score, instance.reason))
    return draw_contact_sheet(entries, title)


def draw_contact_sheet(entries: list[Entry], title: str) -> Image.Image:
    """Cells of image and cut-out side by side; a green frame is a kept one, a red one dropped."""
    cell_width, cell_height = 2 * _TILE + 3 * _GAP, _TILE + _TEXT + 2 * _GAP
    rows, top = -(-len(entries) // _COLUMNS), 44 if title else 0
    sheet = Image.new("RGB", (_COLUMNS * cell_width + _GAP, rows * cell_height + top), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 12), title, fill=_INK, font=ImageFont.load_default(18))
    for index, entry in enumerate(entries):
        x, y = _GAP + index % _COLUMNS * cell_width, top + index // _COLUMNS * cell_height
        colour = _DROPPED if entry.reason else _KEPT
        draw.rectangle((x, y, x + cell_width - _GAP, y + cell_height - _GAP), outline=colour, width=2)
        for place, pixels in enumerate((entry.image[..., :3], _over_checkerboard(entry))):
            tile = Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (x + 6 + place * (_TILE + 6), y + 6))
        font = ImageFont.load_default(13)
        draw.text((x + 6, y + _TILE + 9), entry.name[:34], fill=_INK, font=font)
        verdict = f"{entry.score:.1f} {'dropped: ' + entry.reason if entry.reason else 'kept'}"
        draw.text((x + 6, y + _TILE + 25), verdict, fill=colour, font=font)
    return sheet


def _over_checkerboard(entry: Entry) -> np.ndarray:
    """The cut-out over grey squares: uint8 (H, W, 3)."""
    height, width = entry.alpha.shape
    square = max(height // 8, 1)
    rows, columns = np.arange(height)[:, None] // square, np.arange(width)[None] // square
    board = np.where((rows + columns) % 2, 200, 235)[..., None]
    opacity = entry.alpha[..., None] / 255
    return (opacity * entry.image[..., :3] + (1 - opacity) * board).astype(np.uint8)
