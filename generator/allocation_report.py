"""The division of a round as a table and as a picture."""

import csv
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from exchange import files
from generator.allocation import Allocation, FloatArray, IntArray

_COLUMNS = ("id", "class", "N", "drift", "AP", "share", "images")


def table_rows(
    names: Mapping[int, str],
    instance_counts: IntArray,
    drift: FloatArray | None,
    ap: FloatArray | None,
    allocation: Allocation,
) -> list[tuple[str, ...]]:
    """One row of texts per class, header first, most images first; what is unknown or unused is empty."""
    unknown = np.full(len(names), np.nan)
    drift, ap = (unknown if values is None else values for values in (drift, ap))
    rows = [
        (
            str(category_id),
            name,
            str(instance_counts[i]),
            "" if np.isnan(drift[i]) else f"{drift[i]:.4g}",
            "" if np.isnan(ap[i]) else f"{ap[i]:.2f}",
            f"{allocation.share[i]:.6f}",
            str(allocation.images[i]),
        )
        for i, (category_id, name) in enumerate(sorted(names.items()))
    ]
    order = np.lexsort((np.arange(len(rows)), -allocation.share, -allocation.images))
    return [_COLUMNS, *(rows[i] for i in order)]


def as_text(rows: list[tuple[str, ...]]) -> str:
    """The table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines) + "\n"


def save_report(path: str, rows: list[tuple[str, ...]]) -> None:
    """Writes the table to ``path``.csv and a plot of images over training instances to ``path``.png."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    files.write_bytes(f"{path}.csv", text.getvalue().encode())
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    counts, images = (
        np.array([float(row[_COLUMNS.index(name)]) for row in rows[1:]]) for name in ("N", "images")
    )
    axes.scatter(counts, images, s=12, alpha=0.6)
    axes.set(xscale="symlog", xlabel="training instances of a class", ylabel="images to draw")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    files.write_bytes(f"{path}.png", image.getvalue())
