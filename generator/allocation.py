"""How many images each class gets in a round (MRCA: share ∝ 1/N · drift · AP), and how that is shown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exchange import files
from exchange.command_line import left_out_without_matplotlib
from exchange.errors import UserError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

AP_MODES = ("off", "proportional", "inverse")
LOWEST_AP = 1.0  # percent; a lower AP counts as this in the inverse mode, which would be infinite at 0


@dataclass(frozen=True)
class AllocationRule:
    """What a class's share depends on. An exponent of 0 switches its factor off.

    ``per_class``: images per class on average, so that a round has ``per_class * C``; ``balanced``: exactly
    so many for each class, whatever the factors; ``minimum`` and ``maximum``: bounds for every class.
    """

    per_class: int = 4
    balanced: bool = False
    frequency_exponent: float = 1.0
    drift_exponent: float = 1.0
    ap_mode: str = "proportional"
    ap_exponent: float = 1.0
    minimum: int = 0
    maximum: int | None = None

    def __post_init__(self) -> None:
        if self.ap_mode not in AP_MODES:
            raise ValueError(f"the AP mode is one of {', '.join(AP_MODES)}, not {self.ap_mode!r}")
        if self.per_class < 1:
            raise ValueError(f"there must be at least one image per class, not {self.per_class}")
        if min(self.frequency_exponent, self.drift_exponent, self.ap_exponent) < 0:
            raise ValueError("the exponents of the factors must not be negative")
        if self.minimum > self.per_class or (self.maximum is not None and self.maximum < self.per_class):
            raise ValueError(
                f"no division of {self.per_class} images per class keeps every class between "
                f"{self.minimum} and {self.maximum}"
            )


@dataclass(frozen=True)
class Allocation:
    """One round's division, every array (C,): the share (sums to 1) and the whole number of images."""

    share: FloatArray
    images: IntArray


def allocate(
    rule: AllocationRule,
    category_ids: IntArray,
    instance_counts: IntArray,
    drift: FloatArray | None = None,
    ap: FloatArray | None = None,
) -> Allocation:
    """Divides ``rule.per_class * C`` images among C classes; depends on the set of classes, not their order.

    Args:
        category_ids: (C,), decides between classes that are alike in everything else (the lower one first).
        instance_counts: (C,) training instances; a class without any counts as having one.
        drift: (C,) distance of the classifier's rows from those one round before, NaN where unknown, or None
            before drift and AP apply.
        ap: (C,) mask AP in percent, NaN where there is no validation instance, or None likewise.

    Raises UserError where the product of the factors is beyond float64.
    """
    total = rule.per_class * len(category_ids)
    if rule.balanced:
        equal = np.full(len(category_ids), 1 / len(category_ids))
        return Allocation(equal, np.full(len(category_ids), rule.per_class, dtype=np.int64))
    rarity = (1 / np.maximum(instance_counts, 1)) ** rule.frequency_exponent
    weight = rarity * _factor(drift, rule.drift_exponent)
    if rule.ap_mode == "proportional":
        weight = weight * _factor(ap, rule.ap_exponent)
    elif rule.ap_mode == "inverse":
        weight = weight * _factor(None if ap is None else np.maximum(ap, LOWEST_AP), -rule.ap_exponent)
    if not weight.any():  # each factor spares some class, and together they spare all
        weight = rarity
    if not np.isfinite(weight.sum()):
        raise UserError("the exponents in GENERATOR are too large for drift and AP of this round: lower them")
    share = weight / math.fsum(weight)
    maximum = total if rule.maximum is None else rule.maximum
    return Allocation(
        share, largest_remainder(_bounded(share, total, rule.minimum, maximum), total, category_ids)
    )


def _factor(values: FloatArray | None, exponent: float) -> FloatArray | float:
    """``values ** exponent`` with unknown values at the mean of the known; 1 if that tells no two apart."""
    if values is None or exponent == 0:
        return 1.0
    known = values[np.isfinite(values)]
    if not known.any():
        return 1.0
    return np.where(np.isfinite(values), values, math.fsum(known) / len(known)) ** exponent


def _bounded(share: FloatArray, total: int, minimum: int, maximum: int) -> FloatArray:
    """Divides ``total`` in proportion to ``share`` such that each part lies between the bounds.

    Parts beyond a bound are set to it and the others share the rest, until all agree (the way in which CSS
    resolves flexible lengths).
    """
    parts = np.empty_like(share)
    free = np.ones(len(share), dtype=bool)
    rest = float(total)
    while free.any():
        weight = math.fsum(share[free])
        proposal = rest * share[free] / weight if weight > 0 else np.full(free.sum(), rest / free.sum())
        clipped = proposal.clip(minimum, maximum)
        parts[free] = clipped
        excess = math.fsum(clipped - proposal)
        if excess == 0:
            break
        fixed = np.flatnonzero(free)[clipped > proposal if excess > 0 else clipped < proposal]
        rest -= math.fsum(parts[fixed])
        free[fixed] = False
    return parts


def largest_remainder(parts: FloatArray, total: int, rank: IntArray) -> IntArray:
    """Rounds ``parts`` (K,) to whole numbers with the sum ``total``; of two that are alike that of the lower ``rank``
    (K,) is rounded up first."""
    # Rounded, so that parts that are equal but for the last bits are a tie, which the rank breaks.
    parts = parts.round(9)
    images = np.floor(parts).astype(np.int64)
    order = np.lexsort((rank, -parts, -(parts - images).round(9)))
    images[order[: total - images.sum()]] += 1
    return images


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
    """Writes images over training instances to ``path``.png, with matplotlib, and then the table to ``path``.csv.

    Nothing is done where both are there with the same table: a call that goes on does not draw again.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    content, picture, table = text.getvalue().encode(), f"{path}.png", f"{path}.csv"
    if files.exists(picture) and files.exists(table) and files.read_bytes(table) == content:
        return
    with left_out_without_matplotlib(picture):
        files.write_bytes(picture, _plot(rows))
    files.write_bytes(table, content)


def _plot(rows: list[tuple[str, ...]]) -> bytes:
    from matplotlib.figure import Figure  # takes a second, and only who draws needs it

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    counts, images = (
        np.array([float(row[_COLUMNS.index(name)]) for row in rows[1:]]) for name in ("N", "images")
    )
    axes.scatter(counts, images, s=12, alpha=0.6)
    axes.set(xscale="symlog", xlabel="training instances of a class", ylabel="images to draw")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
