"""Is a pool any good? What was kept and dropped, how it scores, and how different it is: by round and by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from diSegmenter.pool.diversity_table import Diversity, DiversityTable
from exchange.layout import RunLayout
from exchange.pool_features import PoolFeatures
from exchange.pool_index import PoolIndex
from exchange.pool_rank import known_ranks

NEAR = 0.99  # cosine of cut-outs of a class that look the same to the embedded encoder: docs/selection.md
_QUANTILES = (0.05, 0.5, 0.95)

Quantiles = tuple[float, float, float]


@dataclass(frozen=True)
class Quality:
    """What can be said of some instances.

    Attributes:
        dropped: how many for which reason.
        clip, similarity: 5 %, median and 95 % of the kept ones that have one; None where none has.
        diversity: of the kept ones; None where not all are measured.
    """

    made: int
    kept: int
    dropped: dict[str, int]
    clip: Quantiles | None
    similarity: Quantiles | None
    diversity: Diversity | None

    @property
    def near_duplicate_share(self) -> float | None:
        """Percent of the kept ones that are near-duplicates; None where nobody knows, or nothing is kept."""
        return 100 * self.diversity.near_duplicates / self.kept if self.diversity and self.kept else None


class PoolQuality:
    """The quality of a pool, from its index and the features that were measured.

    Args:
        rounds: that the pool consists of, in ascending order, one at least.
        near: cosine from which on an instance repeats an earlier one.

    Attributes:
        reasons: what instances were dropped for, the most frequent first.
        unmeasured: the first round that keeps an instance without features, None if there is none. Diversity is known
            before it.

    Raises UserError where a file of the pool is damaged.
    """

    def __init__(self, layout: RunLayout, rounds: Sequence[int], near: float = NEAR) -> None:
        self.rounds = list(rounds)
        features, codes = PoolFeatures(layout, self.rounds), {"": 0}
        columns = [_columns(layout, round_, features, codes) for round_ in self.rounds]
        categories, *rest = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(categories, kind="stable")  # by class, then by round, as they came
        self._codes, self._clip, self._similarity, places = (column[order] for column in rest)
        self._rounds = np.repeat(np.arange(len(columns)), [len(column[0]) for column in columns])[order]
        ids, starts = np.unique(categories[order], return_index=True)
        self._numbers = {id_: number for number, id_ in enumerate(ids.tolist())}
        self._bounds = [*starts.tolist(), len(order)]
        counts = np.bincount(self._codes, minlength=len(codes))
        self._reasons = {word: code for word, code in codes.items() if word}
        self.reasons = sorted(self._reasons, key=lambda word: -counts[codes[word]])
        lacking = self._rounds[(self._codes == 0) & (places < 0)]
        self._measured = int(lacking.min()) if len(lacking) else len(self.rounds)
        self.unmeasured = self.rounds[self._measured] if len(lacking) else None
        usable = (self._codes == 0) & (self._rounds < self._measured)
        self._diversity = DiversityTable(self._measured, len(ids), near)
        for number in tqdm(range(len(ids)), "diversity", unit=" classes", delay=2):
            kept = self._members(number)[usable[self._members(number)]]
            if len(kept):
                self._diversity.add(number, self._rounds[kept], features.read(places[kept]))

    def of(self, round_: int | None = None, category_id: int | None = None) -> Quality:
        """Of what a round brought, of a class, of both or, without either, of the pool."""
        number = None if category_id is None else self._numbers.get(category_id)
        if number is None and category_id is not None:
            return Quality(0, 0, dict.fromkeys(self.reasons, 0), None, None, None)
        rows = np.arange(len(self._rounds)) if number is None else self._members(number)
        place = None if round_ is None else self.rounds.index(round_)
        if place is not None:
            rows = rows[self._rounds[rows] == place]
        is_measured = (len(self.rounds) - 1 if place is None else place) < self._measured
        counts = np.bincount(self._codes[rows], minlength=len(self._reasons) + 1).tolist()
        kept = rows[self._codes[rows] == 0]
        return Quality(
            len(rows),
            len(kept),
            {word: counts[self._reasons[word]] for word in self.reasons},
            _quantiles(self._clip[kept]),
            _quantiles(self._similarity[kept]),
            self._diversity.of(place, number) if is_measured else None,
        )

    def _members(self, number: int) -> npt.NDArray[np.int64]:
        """The rows of a class, in the order of rounds."""
        return np.arange(*self._bounds[number : number + 2])


def _columns(
    layout: RunLayout, round_: int, features: PoolFeatures, codes: dict[str, int]
) -> tuple[npt.NDArray[Any], ...]:
    """Of each instance, (N,): category id, code of its reason, CLIP score, similarity, place among ``features`` or -1.

    Similarities that the index lacks are those of mrca pool rank. Reasons without a code are given one.
    """
    index = PoolIndex(layout, [round_], dropped_too=True)
    ranks = known_ranks(layout, round_, "similarity")
    names = index.column("file").tolist() if ranks or len(features) else []
    similarity = index.column("similarity")
    if ranks:
        ranked = np.array([ranks.get(name, np.nan) for name in names])
        similarity = np.where(np.isnan(similarity), ranked, similarity)
    reasons = pa.array(index.column("reason"), pa.string()).dictionary_encode()
    known = [codes.setdefault(word, len(codes)) for word in reasons.dictionary.to_pylist()]
    return (
        index.category_ids,
        np.array(known, np.int64)[reasons.indices.to_numpy()],
        np.fmax(index.column("clip_white"), index.column("clip_black")),
        similarity,
        features.rows(names) if len(features) else np.full(len(index), -1),
    )


def _quantiles(values: npt.NDArray[np.float64]) -> Quantiles | None:
    known = values[~np.isnan(values)]
    return tuple(np.quantile(known, _QUANTILES).tolist()) if len(known) else None
