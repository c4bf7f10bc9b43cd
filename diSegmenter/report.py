"""The report of a round: what was asked for, made and kept, and why not, as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from diSegmenter.finish_round import JudgedRound
from exchange import files
from exchange.fonts import label_font
from exchange.images import BadImage, encode_png, read_rgba
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.pool_index import PoolInstance

LIMIT = 48  # pictures of instances on a sheet
_TILE, _MARGIN, _GAP, _LINE = 112, 6, 10, 18
_KEPT, _DROPPED, _INK, _PAPER = (22, 130, 60), (190, 40, 40), (30, 30, 30), (255, 255, 255)
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
    sheet = instance_sheet(layout, title, judged.instances, names)
    files.write_bytes(files.join(layout.pictures_dir, f"generated_rd{judged.round:02}.png"), _png(sheet))
    document = _document(layout, judged, names, title)
    files.write_bytes(files.join(layout.pictures_dir, f"report_rd{judged.round:02}.html"), document.encode())


def contact_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], title: str) -> Image.Image:
    """Pictures in a grid, each above its caption, which may have several lines, all under a title."""
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    width = max((picture.width for picture in pictures), default=0) + _GAP
    height = max((picture.height for picture in pictures), default=0)
    row = height + _GAP + _LINE * max((caption.count("\n") + 1 for caption in captions), default=0)
    top = _GAP + (2 * _LINE if title else 0)
    size = (columns * width + _GAP, -(-len(pictures) // columns) * row + top)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill=_INK, font=label_font(_LINE - 2))
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = _GAP + number % columns * width, top + number // columns * row
        sheet.paste(picture, (x + (width - _GAP - picture.width) // 2, y + (height - picture.height) // 2))
        draw.text((x, y + height), caption, fill=_INK, font=label_font(12))
    return sheet


def instance_sheet(
    layout: RunLayout, title: str, instances: Sequence[PoolInstance], names: Mapping[int, str]
) -> Image.Image:
    """A sheet of up to 48 of ``instances``, spread evenly; those whose images are gone are left out."""
    pictures, captions = [], []
    for instance in instances[:: max(-(-len(instances) // LIMIT), 1)]:
        try:
            image = read_rgba(layout.raw(instance.file))
            alpha = read_rgba(layout.segmented(instance.file))[..., 0]
        except BadImage:
            continue
        pictures.append(framed_pair(image, alpha, _DROPPED if instance.reason else _KEPT))
        verdict = f"dropped: {instance.reason}" if instance.reason else "kept"
        captions.append(f"{names[instance.category_id][:34]}\n{instance.clip_score or 0.0:.1f} {verdict}")
    return contact_sheet(pictures, captions, title)


def framed_pair(image: np.ndarray, alpha: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """An image, uint8 (H, W, 3 or more), beside what the mask ``alpha`` (H, W) cuts out of it, in a frame."""
    step = _TILE + _MARGIN
    pair = Image.new("RGB", (2 * step + _MARGIN, step + _MARGIN), _PAPER)
    ImageDraw.Draw(pair).rectangle((0, 0, pair.width - 1, pair.height - 1), outline=colour, width=2)
    for place, pixels in enumerate((image[..., :3], over_checkerboard(image, alpha))):
        tile = Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        pair.paste(tile, (_MARGIN + place * step, _MARGIN))
    return pair


def over_checkerboard(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The cut-out over grey squares: uint8 (H, W, 3)."""
    height, width = alpha.shape
    square = max(height // 8, 1)
    rows, columns = np.arange(height)[:, None] // square, np.arange(width)[None] // square
    board = np.where((rows + columns) % 2, 200, 235)[..., None]
    opacity = alpha[..., None] / 255
    return (opacity * image[..., :3] + (1 - opacity) * board).astype(np.uint8)


def _document(layout: RunLayout, judged: JudgedRound, names: Mapping[int, str], title: str) -> str:
    asked: Counter[int] = Counter()
    for manifest in read_round(layout, judged.round):
        asked.update(manifest.asked)
    dropped = [instance for instance in judged.instances if instance.reason]
    page = [
        f"<h1>{title.capitalize()}</h1>",
        f"<p>Asked for: {asked.total()}. {html.escape(judged.filter.in_words())}</p>",
        _reasons(judged),
        f"<h2>CLIP scores</h2>{_histogram(judged.kept, dropped, judged.filter.clip_threshold)}",
    ]
    for heading, some in (("Kept", judged.kept), ("Dropped", dropped)):
        if some:
            page.append(f"<h2>{heading}</h2><p>{_SHEET}</p>")
            page.append(_picture(instance_sheet(layout, "", some, names), heading))
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
    return encode_png(np.asarray(image))
