"""The quality of a pool as tables of its rounds and classes, and all of it as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from tabulate import tabulate

from diSegmenter.pool.quality import PoolQuality, Quality

Cell = str | int | float | None
Table = dict[str, list[Cell]]  # columns by their titles, without those of which nothing is known
_Columns = dict[str, Callable[[Quality], Cell]]


def by_round(quality: PoolQuality) -> Table:
    """A row for each round, and one for the pool, which tells the diversity of all of it."""
    rows = [(str(round_), quality.of(round_)) for round_ in quality.rounds]
    return _table("round", [*rows, ("all", quality.of())], quality.reasons)


def by_class(quality: PoolQuality, names: Mapping[int, str]) -> Table:
    """A row for each class of all rounds; ``names``: by category id."""
    rows = [(name, quality.of(category_id=id_)) for id_, name in names.items()]
    return _table("class", rows, quality.reasons)


def as_text(table: Table) -> str:
    """A table for the terminal."""
    align = ["left" if title == "class" else "right" for title in table]
    return tabulate(table, headers="keys", tablefmt="plain", colalign=align, disable_numparse=True)


def as_csv(quality: PoolQuality, names: Mapping[int, str]) -> str:
    """A row for each round and class, with numbers of instances and not shares."""
    columns = _numbers(quality.reasons)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["round", "id", "class", *columns])
    for round_ in quality.rounds:
        for id_, name in names.items():
            found = quality.of(round_, id_)
            writer.writerow([round_, id_, name, *(value(found) for value in columns.values())])
    return text.getvalue()


def _table(head: str, rows: Sequence[tuple[str, Quality]], reasons: Sequence[str]) -> Table:
    columns: _Columns = {
        "made": lambda of: of.made,
        "kept": lambda of: of.kept,
        "CLIP 5, 50, 95 %": lambda of: of.clip and " ".join(f"{value:.1f}" for value in of.clip),
        "similarity": lambda of: of.similarity and f"{of.similarity[1]:.3f}",
        "distance": lambda of: of.diversity and _fixed(of.diversity.distance, ".3f"),
        "Vendi": lambda of: of.diversity and _fixed(of.diversity.vendi, ".1f"),
        "Vendi of pool": lambda of: of.diversity and _fixed(of.diversity.pool_vendi, ".1f"),
        "near-duplicates": lambda of: _percent(of.near_duplicate_share),
    }
    columns |= {
        f"dropped: {reason}": lambda of, r=reason: _percent(
            100 * of.dropped[r] / of.made if of.made else None
        )
        for reason in reasons
    }
    cells = {title: [value(quality) for _, quality in rows] for title, value in columns.items()}
    known = {title: values for title, values in cells.items() if any(value is not None for value in values)}
    return {head: [name for name, _ in rows], **known}


def _numbers(reasons: Sequence[str]) -> _Columns:
    columns: _Columns = {"made": lambda of: of.made, "kept": lambda of: of.kept}
    columns |= {f"dropped: {reason}": lambda of, r=reason: of.dropped[r] for reason in reasons}
    for place, what in enumerate(("5 %", "median", "95 %")):
        columns[f"CLIP score, {what}"] = lambda of, p=place: of.clip and of.clip[p]
        columns[f"similarity, {what}"] = lambda of, p=place: of.similarity and of.similarity[p]
    for title, name in (
        ("distance", "distance"),
        ("Vendi", "vendi"),
        ("Vendi of pool", "pool_vendi"),
        ("near-duplicates", "near_duplicates"),
    ):
        columns[title] = lambda of, n=name: of.diversity and getattr(of.diversity, n)
    return columns


def _fixed(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f} %"
