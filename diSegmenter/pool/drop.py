"""Instances that a person takes out of a pool: remembered, so that no later judgement brings them back."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence, Set
from typing import Any

import numpy as np

from diSegmenter.pool.annotation_file import renew_lvis
from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance

BY_HAND = "by hand"


def dropped_by_hand(layout: RunLayout) -> frozenset[str]:
    """Names of the instances that were dropped by hand; raises UserError where the list of them is damaged."""
    path = layout.dropped_by_hand()
    if not files.exists(path):
        return frozenset()
    try:
        names = json.loads(files.read_bytes(path))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of names")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and drop the instances again") from error
    return frozenset(names)


def without(instances: Iterable[PoolInstance], names: Collection[str]) -> list[PoolInstance]:
    """``instances``, those called ``names`` dropped by hand, whatever else was said of them."""
    return [dataclasses.replace(i, reason=BY_HAND) if i.file in names else i for i in instances]


def drop(
    layout: RunLayout,
    names: Collection[str],
    category_ids: Collection[int],
    rounds: Collection[int],
    categories: Sequence[dict[str, Any]],
) -> dict[int, int]:
    """Drops the instances called ``names``, and all of the classes ``category_ids`` or of ``rounds``.

    Given both, only those of these classes in these rounds. The list of them is written first, so that a call that is
    killed is made good by stage 2 or by the same call.

    Returns:
        How many of each round, without the rounds that have none.

    Raises UserError for a name that the pool does not have, and where it has nothing of the classes and rounds.
    """
    chosen = {
        r: _chosen(PoolIndex(layout, [r], dropped_too=True), names, category_ids, rounds)
        for r in layout.pool_rounds()
    }
    found = frozenset().union(*chosen.values())
    if unknown := sorted(set(names) - found):
        raise UserError(f"{layout.root} has no instance {unknown[0]}: its names are those in its report")
    if not found:
        raise UserError(
            f"{layout.root} has no instance of these classes and rounds: mrca pool stats --per-class lists them"
        )
    files.write_json(layout.dropped_by_hand(), sorted(found | dropped_by_hand(layout)))
    changed = False
    for round_, of_round in chosen.items():
        if of_round:
            index = PoolIndex(layout, [round_], dropped_too=True)
            named = _are_among(of_round, index.column("file"))
            index.write_as(layout, round_, reason=np.where(named, BY_HAND, index.column("reason")))
            changed = True
        if changed:
            renew_lvis(layout, round_, categories)
    return {round_: len(of_round) for round_, of_round in chosen.items() if of_round}


def _chosen(
    index: PoolIndex, names: Collection[str], category_ids: Collection[int], rounds: Collection[int]
) -> set[str]:
    files_, ids, of_rounds = index.column("file"), index.category_ids, index.column("round")
    chosen = _are_among(frozenset(names), files_)
    if category_ids or rounds:
        of_class = np.isin(ids, list(category_ids)) | (not category_ids)
        chosen |= of_class & (np.isin(of_rounds, list(rounds)) | (not rounds))
    return set(files_[chosen].tolist())


def _are_among(names: Set[str], texts: np.ndarray) -> np.ndarray:
    """Which of ``texts`` are, bool (N,); NumPy would compare each with each."""
    return np.array([text in names for text in texts.tolist()], bool)
