"""What the page tells of a gradient selection: how much of each round was learnt from as pasted, and what was not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from exchange.decisions import always_refused, read_decisions
from exchange.layout import RunLayout


@dataclass(frozen=True)
class Selection:
    """The decisions of a round.

    Attributes:
        batches: parts of batches that were decided about, one of each process in an iteration.
        accepted: share of them that was learnt from as pasted.
        scores: their lower quartile, median and upper quartile.
        pasted, refused: by category id, how often an instance was pasted, and how often into a part that was refused.
        never_learnt: instances that were pasted, but into refused parts alone.
    """

    round: int
    batches: int
    accepted: float
    scores: tuple[float, float, float]
    pasted: dict[int, int]
    refused: dict[int, int]
    never_learnt: int


def read_selections(layout: RunLayout, rounds: Iterable[int]) -> list[Selection]:
    """Of those of ``rounds`` that have decisions; UserError where a table of them is damaged."""
    return [_read(layout, round_) for round_ in rounds if layout.decision_parts(round_)]


def _read(layout: RunLayout, round_: int) -> Selection:
    table = read_decisions(layout, [round_])
    parts = table.group_by(["iteration", "process"]).aggregate([("score", "max"), ("accepted", "any")])
    lower, median, upper = np.quantile(parts["score_max"].to_numpy(), (0.25, 0.5, 0.75)).tolist()
    refused = table.filter(pc.invert(table["accepted"]))
    pasted, left = (
        dict(zip(*(of[field].to_pylist() for field in ("category_id", "category_id_count")), strict=True))
        for of in (
            some.group_by("category_id").aggregate([("category_id", "count")]) for some in (table, refused)
        )
    )
    return Selection(
        round_,
        len(parts),
        pc.mean(parts["accepted_any"]).as_py(),
        (lower, median, upper),
        pasted,
        left,
        len(always_refused(layout, [round_], 1)),
    )
