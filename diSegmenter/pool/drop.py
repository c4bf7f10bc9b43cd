"""Instances that a person takes out of a pool: remembered, so that no later judgement brings them back."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from diSegmenter.pool.annotation_file import write_lvis
from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance, write_index

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
    categories: Sequence[Mapping[str, Any]],
) -> int:
    """Drops the instances called ``names``, and all of the classes ``category_ids`` or of ``rounds``; returns how many.

    Given both, only those of these classes in these rounds. The list of them is written first, so that a call that is
    killed is made good by stage 2 or by the same call.

    Raises UserError for a name that the pool does not have.
    """
    by_round = {r: list(PoolIndex(layout, [r], dropped_too=True)) for r in layout.pool_rounds()}
    every = [instance for instances in by_round.values() for instance in instances]
    if unknown := sorted(set(names).difference(instance.file for instance in every)):
        raise UserError(f"{layout.root} has no instance {unknown[0]}: its names are those in its report")
    chosen = {i.file for i in every if i.file in names or _is_meant(i, category_ids, rounds)}
    files.write_json(layout.dropped_by_hand(), sorted(chosen | dropped_by_hand(layout)))
    changed = False
    for round_, instances in by_round.items():
        judged = without(instances, chosen)
        if judged != instances:
            write_index(layout, round_, judged)
            changed = True
        if changed and files.exists(layout.annotations(round_)):
            pool_rounds = [r for r in by_round if r <= round_]
            write_lvis(layout.annotations(round_), layout, pool_rounds, [dict(c) for c in categories])
    return len(chosen)


def _is_meant(instance: PoolInstance, category_ids: Collection[int], rounds: Collection[int]) -> bool:
    if not (category_ids or rounds):
        return False
    return (not category_ids or instance.category_id in category_ids) and (
        not rounds or instance.round in rounds
    )
