"""What the ranks of a pool's instances (``mrca pool rank``) mean for pasting: only comparisons within a class count."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def shares_no_higher(values: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """For each instance the share of its class whose value is known and no higher than its own: in (0, 1], (N,).

    One of unknown value, NaN, is in the middle. So classes stay as likely as by their numbers, whatever the measure is.
    """
    shares = np.full(len(values), 0.5)
    for members in _known_of_each_class(values, categories):
        of_class = values[members]
        shares[members] = np.searchsorted(np.sort(of_class), of_class, side="right") / len(of_class)
    return shares


def highest(values: np.ndarray, categories: np.ndarray, share: float) -> np.ndarray:
    """Which instances are the highest ``share`` of those of their class whose value is known, at least one: bool (N,).

    Of equal ones the first. One of unknown value is among them.
    """
    kept = np.ones(len(values), bool)
    for members in _known_of_each_class(values, categories):
        order = members[np.argsort(-values[members], kind="stable")]
        kept[order[int(np.ceil(share * len(order))) :]] = False
    return kept


def _known_of_each_class(values: np.ndarray, categories: np.ndarray) -> Iterator[np.ndarray]:
    known = np.flatnonzero(~np.isnan(values))
    ordered = known[np.argsort(categories[known], kind="stable")]
    starts = np.flatnonzero(np.diff(categories[ordered])) + 1
    yield from (members for members in np.split(ordered, starts) if len(members))
