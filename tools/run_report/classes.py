"""The table of classes: of one run in full, of several side by side in short; the file in CSV has everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tools.run_report.confusions import in_words, recognised
from tools.run_report.content import Category, RunContent, when

Cell = str | int | float | None
GROUPS = {"r": "rare", "c": "common", "f": "frequent", "": ""}


@dataclass(frozen=True)
class Column:
    """A column: its value for a class, by the run's number in a list of one class of each run."""

    title: str
    value: Callable[[Sequence[Category]], Cell]
    is_number: bool = True
    form: str = ".1f"

    def text(self, of_runs: Sequence[Category]) -> str:
        """As the page shows it."""
        value = self.value(of_runs)
        return format(value, self.form) if isinstance(value, float) else "" if value is None else str(value)


@dataclass(frozen=True)
class Row:
    """A class: its id, name and group, a text for each column, and the sheets with its instances."""

    id: int
    name: str
    group: str
    cells: list[str]
    sheets: Sequence[str]


def table(
    runs: Mapping[str, RunContent], sheets: Mapping[int, Sequence[str]]
) -> tuple[list[Column], list[Row]]:
    """Columns and rows for the page; ``runs`` by their labels, ``sheets`` by class id."""
    columns = _describing()
    if len(runs) == 1:
        columns += _of_run(0, "", *runs.values(), in_full=True)
    else:
        for number, (label, run) in enumerate(runs.items()):
            columns += _of_run(number, f"{label} ", run, in_full=False)
        columns.append(Column("difference", _difference))
    rows = [
        Row(
            id_,
            of_runs[0].name,
            of_runs[0].group,
            [column.text(of_runs) for column in columns],
            sheets.get(id_, ()),
        )
        for id_, of_runs in _by_class(runs).items()
    ]
    return columns, rows


def as_csv(runs: Mapping[str, RunContent]) -> str:
    """All classes with everything that is known of each, of all runs."""
    columns = [Column("id", lambda of: of[0].id), *_describing()]
    for number, (label, run) in enumerate(runs.items()):
        columns += _of_run(number, f"{label} " if len(runs) > 1 else "", run, in_full=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.title for column in columns])
    writer.writerows([column.value(of_runs) for column in columns] for of_runs in _by_class(runs).values())
    return text.getvalue()


def _by_class(runs: Mapping[str, RunContent]) -> dict[int, list[Category]]:
    """One class of each run by id; a run that lacks a class has it empty, with what another says of it."""
    every = [run.categories for run in runs.values()]
    found = {}
    for id_ in sorted(set().union(*every)):
        told = max(
            (of[id_] for of in every if id_ in of), key=lambda c: (bool(c.group), c.training is not None)
        )
        empty = Category(id_, told.name, told.group, told.training)
        found[id_] = [of.get(id_, empty) for of in every]
    return found


def _describing() -> list[Column]:
    return [
        Column("class", lambda of: of[0].name, is_number=False),
        Column("group", lambda of: GROUPS.get(of[0].group, of[0].group), is_number=False),
        Column("training instances", lambda of: of[0].training),
    ]


def _of_run(number: int, label: str, run: RunContent, in_full: bool) -> list[Column]:
    made = [
        Column(f"{label}asked", lambda of: of[number].asked),
        Column(f"{label}made", lambda of: of[number].made),
    ]
    kept = [Column(f"{label}kept", lambda of: of[number].kept)]
    dropped = [Column(f"{label}dropped for", lambda of: _reasons(of[number]), is_number=False)]
    change = [Column(f"{label}change", lambda of: of[number].change)]
    if not in_full:
        last = Column(f"{label}AP", lambda of: of[number].known[-1] if of[number].known else None)
        return [*kept, last, *change]
    rounds = [
        Column(f"{label}AP {when(feedback.round)}", lambda of, r=feedback.round: of[number].ap.get(r))
        for feedback in run.feedbacks
    ]
    drift = Column(f"{label}drift", lambda of: of[number].drift, form=".3g")
    names = {id_: category.name for id_, category in run.categories.items()}
    told = [
        Column(
            f"{label}recognised %", lambda of: recognised(of[number].id, of[number].taken_for), form=".0f"
        ),
        Column(
            f"{label}taken for",
            lambda of: in_words(of[number].id, of[number].taken_for, names),
            is_number=False,
        ),
    ]
    refused = [Column(f"{label}refused, %", lambda of: of[number].refused_share)] if run.selections else []
    return [
        *made,
        *kept,
        *dropped,
        *_of_quality(number, label, run),
        *refused,
        *rounds,
        *change,
        drift,
        *told,
    ]


def _of_quality(number: int, label: str, run: RunContent) -> list[Column]:
    """What is known of the instances of any class."""
    columns = (
        ("CLIP score", lambda q: q.clip and q.clip[1], ".1f"),
        ("similarity", lambda q: q.similarity and q.similarity[1], ".3f"),
        ("distance", lambda q: q.diversity and q.diversity.distance, ".3f"),
        ("Vendi", lambda q: q.diversity and q.diversity.vendi, ".1f"),
        ("near-duplicates, %", lambda q: q.near_duplicate_share, ".1f"),
    )
    every = [category.quality for category in run.categories.values() if category.quality]
    return [
        Column(f"{label}{title}", lambda of, v=value: of[number].quality and v(of[number].quality), form=form)
        for title, value, form in columns
        if any(value(quality) is not None for quality in every)
    ]


def _reasons(category: Category) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in category.reasons.most_common())


def _difference(of_runs: Sequence[Category]) -> float | None:
    """The last AP of the last run less that of the first."""
    first, last = of_runs[0].known, of_runs[-1].known
    return last[-1] - first[-1] if first and last else None
