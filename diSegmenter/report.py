"""The report of a round: what was asked for, made and kept, and why not, as one self-contained HTML file."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diSegmenter.finish_round import JudgedRound
from diSegmenter.images import UnreadableImage, read_rgba
from exchange import files
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.pool_index import PoolInstance

LIMIT = 48  # cells of a sheet
_TILE, _GAP, _TEXT, _SHEET_COLUMNS = 112, 10, 34, 6
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
    rows, top = -(-len(entries) // _SHEET_COLUMNS), 44 if title else 0
    sheet = Image.new("RGB", (_SHEET_COLUMNS * cell_width + _GAP, rows * cell_height + top), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 12), title, fill=_INK, font=ImageFont.load_default(18))
    for index, entry in enumerate(entries):
        x, y = _GAP + index % _SHEET_COLUMNS * cell_width, top + index // _SHEET_COLUMNS * cell_height
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


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1540px; margin: 2em auto; padding: 0 2em; color: #1e1e1e }
table { border-collapse: collapse } td, th { padding: 2px 10px; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f3f3f3 }
img, svg { max-width: 100% } .columns { display: flex; flex-wrap: wrap; gap: 1em 5em; align-items: start }
"""
_SHEET = f"Generated image, cut-out, class and CLIP score; all of them, or {LIMIT} spread evenly."
_BINS = 30
_COLUMNS, _MIN_ROWS = 3, 10  # of the table of classes


def write_pictures(layout: RunLayout, judged: JudgedRound, names: Mapping[int, str]) -> None:
    """Writes ``pictures/generated_rdNN.png``, a contact sheet, and ``pictures/report_rdNN.html``."""
    title = f"round {judged.round}: {len(judged.kept)} of {len(judged.instances)} instances kept"
    sheet = contact_sheet(layout, title, judged.instances, names)
    files.write_bytes(files.join(layout.pictures_dir, f"generated_rd{judged.round:02}.png"), _png(sheet))
    document = _document(layout, judged, names, title)
    files.write_bytes(files.join(layout.pictures_dir, f"report_rd{judged.round:02}.html"), document.encode())


def _document(layout: RunLayout, judged: JudgedRound, names: Mapping[int, str], title: str) -> str:
    asked: Counter[int] = Counter()
    for manifest in read_round(layout, judged.round):
        asked.update(manifest.asked)
    dropped = [instance for instance in judged.instances if instance.reason]
    settings = dataclasses.asdict(judged.checks).items()
    thresholds = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings)
    page = [
        f"<h1>{title.capitalize()}</h1>",
        f"<p>Asked for: {asked.total()}. Thresholds: {html.escape(thresholds)}.</p>",
        _reasons(judged),
        f"<h2>CLIP scores</h2>{_histogram(judged.kept, dropped, judged.checks.clip_threshold)}",
    ]
    for heading, some in (("Kept", judged.kept), ("Dropped", dropped)):
        if some:
            page.append(f"<h2>{heading}</h2><p>{_SHEET}</p>")
            page.append(_picture(contact_sheet(layout, "", some, names), heading))
    page.append(_classes(names, asked, judged))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(page)}</body></html>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _reasons(judged: JudgedRound) -> str:
    counts = Counter(instance.reason for instance in judged.instances if instance.reason)
    if judged.unreadable:
        counts["does not decode"] = len(judged.unreadable)
    if not counts:
        return ""
    return "<h2>Why instances were dropped</h2>" + _table(("reason", "instances"), counts.most_common())


def _classes(names: Mapping[int, str], asked: Mapping[int, int], judged: JudgedRound) -> str:
    made, kept = (Counter(i.category_id for i in some) for some in (judged.instances, judged.kept))
    concerned = [i for i in names if asked.get(i) or made[i]]
    worst_first = sorted(concerned, key=lambda i: (kept[i] / max(made[i], 1), names[i]))
    rows = [(names[i], asked.get(i, 0), made[i], kept[i]) for i in worst_first]
    length = max(-(-len(rows) // _COLUMNS), _MIN_ROWS)
    parts = (rows[start : start + length] for start in range(0, len(rows), length))
    tables = "".join(_table(("class", "asked", "made", "kept"), part) for part in parts)
    return f'<h2>Classes, those that lose most first</h2><div class="columns">{tables}</div>'


def _histogram(kept: Sequence[PoolInstance], dropped: Sequence[PoolInstance], threshold: float) -> str:
    """Stacked bars of the CLIP scores, with a line at the threshold, as SVG."""
    parts = [
        np.array([i.clip_score for i in some if i.clip_score is not None], dtype=np.float64)
        for some in (kept, dropped)
    ]
    scores = np.concatenate(parts)
    if not len(scores):
        return "<p>Nothing was scored.</p>"
    edges = np.linspace(scores.min() - 0.5, scores.max() + 0.5, _BINS + 1)
    counts = [np.histogram(part, edges)[0] for part in parts]
    width, height = 900, 200
    step, unit = width / _BINS, height / max(int((counts[0] + counts[1]).max()), 1)
    bars = []
    for i in range(_BINS):
        top = height
        for count, colour in ((counts[0][i], "#16823c"), (counts[1][i], "#be2828")):
            top -= count * unit
            size = f'x="{i * step:.1f}" y="{top:.1f}" width="{step - 1:.1f}" height="{count * unit:.1f}"'
            bars.append(f'<rect {size} fill="{colour}"/>')
    labels = [
        f'<text x="{place * width:.0f}" y="{height + 18}" text-anchor="{anchor}">{value:.1f}</text>'
        for place, value, anchor in ((0, edges[0], "start"), (1, edges[-1], "end"))
    ]
    if edges[0] <= threshold <= edges[-1]:
        x = (threshold - edges[0]) / (edges[-1] - edges[0]) * width
        labels.append(f'<path d="M{x:.1f} 0V{height}" stroke="#1e1e1e" stroke-dasharray="5 4"/>')
        labels.append(f'<text x="{x:.1f}" y="{height + 18}" text-anchor="middle">{threshold:g}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height + 24}" width="{width}" role="img">{"".join(bars + labels)}</svg>'
        "<p>green: kept, red: dropped; dashed: the threshold</p>"
    )


def _picture(image: Image.Image, title: str) -> str:
    data = base64.b64encode(_png(image)).decode()
    return f'<img alt="contact sheet: {html.escape(title)}" src="data:image/png;base64,{data}">'


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
