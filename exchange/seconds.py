"""Where the time of a run goes: the seconds of each kind of work, by round, in a file of each process."""

import json
import math
import time
from collections import defaultdict
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
            _add(self._not_written, str(round_), work, taken - of_others)
            if self._within:
                self._within[-1] += taken
            else:
                self._write()

    def _write(self) -> None:
        table = _read(self._path) if files.exists(self._path) else {}
        for round_, of_round in self._not_written.items():
            for work, seconds in of_round.items():
                _add(table, round_, work, seconds)
        files.write_json(self._path, table)
        self._not_written = {}


def _add(table: _Table, round_: str, work: str, seconds: float) -> None:
    of_round = table.setdefault(round_, {})
    of_round[work] = of_round.get(work, 0.0) + seconds


def read_seconds(layout: RunLayout) -> dict[int, dict[str, float]]:
    """Seconds by round and work, those of all processes added up; raises UserError for a damaged file."""
    total: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name in files.list_dir(layout.seconds_dir):
        if name.endswith(".json"):
            for round_, of_round in _read(files.join(layout.seconds_dir, name)).items():
                for work, seconds in of_round.items():
                    total[int(round_)][work] += seconds
    return {round_: dict(of_round) for round_, of_round in sorted(total.items())}


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
