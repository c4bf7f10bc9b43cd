"""How different the kept instances of each class are in each round, and in all rounds up to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diSegmenter.pool.diversity import mean_distance, near_duplicates, vendi_score

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Diversity:
    """Of kept instances of a class; of several classes, the means over those that have a value.

    Attributes:
        distance: mean of 1 - cosine over pairs; None where there is none.
        vendi: effective number of different instances; None where there is no instance.
        pool_vendi: the same of all rounds up to this one; None where no round is meant.
        near_duplicates: number of those that look like an earlier one of their class, of whatever round.
    """

    distance: float | None
    vendi: float | None
    pool_vendi: float | None
    near_duplicates: int


class DiversityTable:
    """Filled class by class, so that the features of one are in memory.

    Args:
        rounds, classes: their numbers.
        near: cosine from which on an instance repeats an earlier one.
    """

    def __init__(self, rounds: int, classes: int, near: float) -> None:
        self._near = near
        self._own, self._pool = np.full((2, rounds, classes, 2), np.nan)  # distance and Vendi score
        self._repeats = np.zeros((rounds, classes), np.int64)

    def add(self, number: int, rounds: _Array, features: _Array) -> None:
        """Takes in the class ``number``.

        ``rounds``: of each instance, in ascending order, (N,); ``features``: unit vectors (N, D).
        """
        repeated = rounds[near_duplicates(features, self._near)]
        self._repeats[:, number] = np.bincount(repeated, minlength=len(self._repeats))
        start, pool = 0, (np.nan, np.nan)
        for round_, end in enumerate(
            np.searchsorted(rounds, np.arange(len(self._repeats)), "right").tolist()
        ):
            if end > start:
                pool = _measured(features[:end])
                self._own[round_, number] = _measured(features[start:end]) if start else pool
            self._pool[round_, number] = pool
            start = end

    def of(self, round_: int | None, number: int | None) -> Diversity:
        """Of a round, of a class, of both; None: all of them, whose own diversity is that of the last round's pool."""
        classes = slice(None) if number is None else [number]
        place = len(self._repeats) - 1 if round_ is None else round_
        pool = _means(self._pool[place, classes])
        own = pool if round_ is None else _means(self._own[place, classes])
        repeats = self._repeats[slice(None) if round_ is None else place, classes].sum()
        return Diversity(*own, None if round_ is None else pool[1], int(repeats))


def _measured(features: _Array) -> tuple[float, float]:
    distance = mean_distance(features)
    return np.nan if distance is None else distance, vendi_score(features)


def _means(values: _Array) -> tuple[float | None, float | None]:
    """Of each column, without what is not known."""
    known = [column[~np.isnan(column)] for column in values.T]
    return tuple(float(column.mean()) if len(column) else None for column in known)
