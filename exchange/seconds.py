"""Where the time of a run goes: the seconds of each kind of work, by round, in a file of each process."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout

_Table = dict[str, dict[str, float]]


class Stopwatch:
    """Adds up what a process does, and what its like did in the calls before: ``seconds/PROCESS.json``.

    What is measured within something else does not count for that; what a process was killed at is not counted. For one
    thread.
    """

    def __init__(self, layout: RunLayout, process: str) -> None:
        self._path = files.join(layout.seconds_dir, f"{process}.json")
        self._not_written: _Table = {}
        self._within: list[float] = []  # of each block that we are in, the seconds that others took within it

    @contextmanager
    def measure(self, round_: int, work: str) -> Iterator[None]:
        """Counts the time that the block takes, however it ends; round -1 is that of the starting weights."""
        started = time.monotonic()
        self._within.append(0.0)
        try:
            yield
        finally:
            taken, of_others = time.monotonic() - started, self._within.pop()
            _add(self._not_written, {str(round_): {work: taken - of_others}})
            if self._within:
                self._within[-1] += taken
            else:
                self._write()

    def _write(self) -> None:
        table = _read(self._path) if files.exists(self._path) else {}
        _add(table, self._not_written)
        files.write_json(self._path, table)
        self._not_written = {}


def _add(table: _Table, more: _Table) -> None:
    for round_, of_round in more.items():
        total = table.setdefault(round_, {})
        for work, seconds in of_round.items():
            total[work] = total.get(work, 0.0) + seconds


def read_seconds(layout: RunLayout) -> dict[int, dict[str, float]]:
    """Seconds by round and work, those of all processes added up; raises UserError for a damaged file."""
    total: _Table = {}
    for name in files.list_dir(layout.seconds_dir):
        if name.endswith(".json"):
            _add(total, _read(files.join(layout.seconds_dir, name)))
    return {int(round_): total[round_] for round_ in sorted(total, key=int)}


def _read(path: str) -> _Table:
    try:
        table = json.loads(files.read_bytes(path))
        checked = {
            str(int(round_)): {str(work): float(seconds) for work, seconds in of_round.items()}
            for round_, of_round in table.items()
        }
        if not all(math.isfinite(seconds) for of_round in checked.values() for seconds in of_round.values()):
            raise ValueError("not a number of seconds")
        return checked
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} does not tell what took how long ({error}): remove it") from error
