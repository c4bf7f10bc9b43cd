"""The report of a round: what was asked for, made and kept, and why not, as one self-contained HTML file."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from diSegmenter.contact_sheet import contact_sheet
from exchange import files
from exchange.cutouts import Cutout, Verdicts, read_round_cutouts, read_verdicts
from exchange.layout import RunLayout
from exchange.manifest import read_round

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1560px; margin: 2em auto; color: #1e1e1e }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: 2px 14px 2px 0; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f3f3f3 }
img { max-width: 100% } .columns { columns: 3; column-gap: 3em }
"""
_BINS = 30


def write_report(layout: RunLayout, round_: int, names: Mapping[int, str]) -> None:
    """Writes ``pictures/report_rdNN.html`` for a round whose decisions are on record."""
    cutouts, _ = read_round_cutouts(layout, round_)
    verdicts = read_verdicts(layout, round_)
    asked: Counter[int] = Counter()
    for manifest in read_round(layout, round_):
        asked.update(manifest.asked)
    kept = [c for c in cutouts.values() if verdicts.reasons.get(c.file) == ""]
    dropped = [c for c in cutouts.values() if verdicts.reasons.get(c.file)]
    page = [
        f"<h1>Round {round_}: {len(kept)} of {len(cutouts)} instances kept</h1>",
        f"<p>Asked for: {asked.total()}. Thresholds: {html.escape(str(verdicts.settings))}.</p>",
        _reasons(verdicts),
        f"<h2>CLIP scores</h2>{_histogram(kept, dropped, verdicts.settings.get('clip_threshold'))}",
        *(
            f"<h2>{title}</h2>{_picture(contact_sheet(layout, round_, names, some, verdicts.reasons), title)}"
            for title, some in (("Kept", kept), ("Dropped", dropped))
            if some
        ),
        _classes(names, asked, cutouts.values(), kept),
    ]
    document = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Round {round_}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(page)}</body></html>"
    )
    files.write_bytes(files.join(layout.pictures_dir, f"report_rd{round_:02}.html"), document.encode())


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _reasons(verdicts: Verdicts) -> str:
    counts = Counter(reason for reason in verdicts.reasons.values() if reason)
    if verdicts.unreadable:
        counts["does not decode"] = len(verdicts.unreadable)
    return "<h2>Why instances were dropped</h2>" + _table(("reason", "instances"), counts.most_common())


def _classes(
    names: Mapping[int, str], asked: Mapping[int, int], made: Iterable[Cutout], kept: Iterable[Cutout]
) -> str:
    made_of, kept_of = (Counter(cutout.category_id for cutout in some) for some in (made, kept))
    concerned = [i for i in names if asked.get(i) or made_of[i]]
    worst_first = sorted(concerned, key=lambda i: (kept_of[i] / max(made_of[i], 1), names[i]))
    rows = [(names[i], asked.get(i, 0), made_of[i], kept_of[i]) for i in worst_first]
    table = _table(("class", "asked", "made", "kept"), rows)
    return f'<h2>Classes, those that lose most first</h2><div class="columns">{table}</div>'


def _histogram(kept: Sequence[Cutout], dropped: Sequence[Cutout], threshold: float | None) -> str:
    """Stacked bars of the CLIP scores, with a line at the threshold, as SVG."""
    parts = [np.array([cutout.clip_score for cutout in some]) for some in (kept, dropped)]
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
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        x = (threshold - edges[0]) / (edges[-1] - edges[0]) * width
        labels.append(f'<path d="M{x:.1f} 0V{height}" stroke="#1e1e1e" stroke-dasharray="5 4"/>')
        labels.append(f'<text x="{x:.1f}" y="{height + 18}" text-anchor="middle">{threshold:g}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height + 24}" width="{width}" role="img">{"".join(bars + labels)}</svg>'
        "<p>green: kept, red: dropped; dashed: the threshold</p>"
    )


def _picture(image: Image.Image, title: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="contact sheet: {html.escape(title)}" src="data:image/png;base64,{data}">'
