"""What gradient selection decided: a row for each pasted instance of each batch, in a columnar table for each round.

The table of a round is in parts, ``train/decisions/rdNN_KKKKKKK.arrow`` (Arrow IPC), each with the iterations after the
part before up to K; the one up to K is written before the checkpoint of K, so that none lacks what a checkpoint knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from exchange import files
from exchange.arrow_files import open_batches, write_batches
from exchange.errors import UserError
from exchange.layout import RunLayout

_SCHEMA = pa.schema(
    [
        ("iteration", pa.int32()),
        ("process", pa.int32()),
        ("instance", pa.string()),
        ("category_id", pa.int32()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("accepted", pa.bool_()),
    ],
    metadata={"format": b"1"},
)


@dataclass(frozen=True)
class Decision:
    """One pasted instance in one batch.

    Attributes:
        iteration: of the training, from 0.
        process: whose part of the batch it was in.
        instance: its name in the pool.
        score: cosine of the gradients that decided, of all instances of that part together.
        threshold: that the score was compared with.
        accepted: whether the part was learnt from as pasted.
    """

    iteration: int
    process: int
    instance: str
    category_id: int
    score: float
    threshold: float
    accepted: bool


def write_decisions(layout: RunLayout, round_: int, iteration: int, decisions: Sequence[Decision]) -> None:
    """Writes the part of a round's table that ends with ``iteration`` iterations done, whole or not at all."""
    batch = pa.RecordBatch.from_pylist([asdict(decision) for decision in decisions], _SCHEMA)
    write_batches(layout.decisions(round_, iteration), _SCHEMA, [batch])


def forget_decisions_after(layout: RunLayout, round_: int, iteration: int) -> None:
    """Removes the parts that a killed training wrote beyond ``iteration``, whose checkpoint it goes on from."""
    for end, path in layout.decision_parts(round_).items():
        if end > iteration:
            files.remove(path)


def read_decisions(layout: RunLayout, rounds: Iterable[int]) -> pa.Table:
    """The tables of some rounds as one, with the fields of :class:`Decision`.

    Raises UserError where a part is damaged or of another format.
    """
    paths = [path for round_ in rounds for path in layout.decision_parts(round_).values()]
    return pa.Table.from_batches([batch for path in paths for batch in _open(path)], _SCHEMA)


def always_refused(layout: RunLayout, rounds: Iterable[int], least: int) -> frozenset[str]:
    """Names of the instances that were pasted ``least`` times or more in ``rounds`` and refused every time.

    Raises UserError as :func:`read_decisions` does.
    """
    found = (
        read_decisions(layout, rounds)
        .group_by("instance")
        .aggregate([("accepted", "any"), ("accepted", "count")])
    )
    refused = pc.and_(pc.invert(found["accepted_any"]), pc.greater_equal(found["accepted_count"], least))
    return frozenset(found.filter(refused)["instance"].to_pylist())


def _open(path: str) -> list[pa.RecordBatch]:
    again = "remove it; what it says of its iterations is then unknown"
    try:
        batches = open_batches(path, [_SCHEMA])
        if any(batch.column(name).null_count for batch in batches or () for name in _SCHEMA.names):
            raise ValueError("a value is missing in a row")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {again}") from error
    if batches is None:
        raise UserError(f"{path} is a table of decisions of another version: {again}")
    return batches
