"""How good the instances of a pool are by a measure that ``mrca pool rank`` takes: a column of its own for each round.

``pool/rank/rdNN.KIND.arrow`` (Arrow IPC) has the name and the value of each kept instance, beside the index, whose
files stay as they are; ``rdNN.KIND.json`` says what the values were made from, and is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exchange import files
from exchange.arrow_files import open_batches, write_batches
from exchange.errors import UserError
from exchange.layout import RunLayout

KINDS = ("gradient", "entropy", "clip", "similarity")
_SCHEMA = pa.schema([("file", pa.string()), ("value", pa.float64())], metadata={"format": b"1"})
_Values = npt.NDArray[np.float64]


def write_rank(
    layout: RunLayout,
    round_: int,
    kind: str,
    names: Sequence[str],
    values: _Values,
    made_from: dict[str, Any],
) -> None:
    """Writes the values of a round, (N,), NaN where nobody knows, and then what they were ``made_from``, in JSON."""
    column = pa.array(values, pa.float64(), from_pandas=True)
    batch = pa.record_batch([pa.array(names, pa.string()), column], schema=_SCHEMA)
    files.remove(layout.rank_done(round_, kind))
    write_batches(layout.rank(round_, kind), _SCHEMA, [batch])
    files.write_json(layout.rank_done(round_, kind), made_from)


def is_ranked(
    layout: RunLayout, round_: int, kind: str, names: Sequence[str], made_from: dict[str, Any]
) -> bool:
    """Whether the instances of a round that are called ``names`` have values made from the same."""
    done = layout.rank_done(round_, kind)
    return (
        files.exists(done)
        and files.read_json(done) == made_from
        and _read(layout, round_, kind).keys() >= set(names)
    )


def known_ranks(layout: RunLayout, round_: int, kind: str) -> dict[str, float]:
    """The values of a round's instances by their names, NaN where nobody knows; none where it was not ranked.

    Raises UserError where a file is damaged.
    """
    return _read(layout, round_, kind) if files.exists(layout.rank_done(round_, kind)) else {}


def read_rank(layout: RunLayout, rounds: Sequence[int], kind: str, names: Sequence[str]) -> _Values:
    """The values of the instances of ``rounds`` called ``names``: (N,), NaN where nobody knows.

    Raises UserError where one of them has not been ranked, or a file is damaged.
    """
    known: dict[str, float] = {}
    for round_ in rounds:
        known |= known_ranks(layout, round_, kind)
    lacking = [name for name in names if name not in known]
    if lacking:
        raise UserError(
            f"{layout.root} has {len(lacking)} instances without a rank by {kind}, such as {lacking[0]}: run mrca pool "
            f"rank {layout.root} --by {kind}"
        )
    return np.array([known[name] for name in names], np.float64)


def _read(layout: RunLayout, round_: int, kind: str) -> dict[str, float]:
    path = layout.rank(round_, kind)
    again = f"remove it and run mrca pool rank {layout.root} --by {kind} again"
    try:
        batches = open_batches(path, [_SCHEMA])
    except (pa.ArrowException, OSError, ValueError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}): {again}") from error
    if batches is None:
        raise UserError(f"{path} is a rank of another version: {again}")
    found: dict[str, float] = {}
    for batch in batches:
        values = batch.column("value").to_numpy(zero_copy_only=False)
        found |= zip(batch.column("file").to_pylist(), values.tolist(), strict=True)
    return found
