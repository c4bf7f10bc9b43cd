"""One terminal for several processes: lines with the stage in front, one bar at a time, the time that is left."""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from typing import IO, TextIO

from exchange import files
from exchange.layout import RunLayout

_ENDS = re.compile(rb"[\r\n]")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and how nested bars move the cursor


class Terminal:
    """Shows what processes write.

    A line appears with its stage in front. Of the bars (what ends with a carriage return) the one that began first
    stands below all lines until it is done, where ``stream`` is a terminal; elsewhere only how each ended appears.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._is_terminal = stream.isatty()
        self._bars: dict[str, str] = {}

    def say(self, stage: str, line: str) -> None:
        """Writes one line of a stage."""
        with self._lock:
            self._clear()
            self._stream.write(f"[{stage}] {line}\n")
            self._show()

    def follow(self, stage: str, pipe: IO[bytes]) -> None:
        """Shows what a process writes to ``pipe`` until that is closed."""
        rest, is_bar = b"", False
        while data := os.read(pipe.fileno(), 1 << 16):
            rest += data
            while end := _ENDS.search(rest):
                self._piece(stage, rest[: end.start()], done=end[0] == b"\n")
                rest, is_bar = rest[end.end() :], end[0] == b"\r"
            if is_bar:
                self._piece(stage, rest, done=False)
        self._piece(stage, rest, done=True)
        pipe.close()

    def _piece(self, stage: str, text: bytes, done: bool) -> None:
        shown = _ESCAPES.sub("", text.decode(errors="replace")).rstrip()
        if done:
            self._bars.pop(stage, None)
        if shown and done:
            self.say(stage, shown)
        elif shown:
            with self._lock:
                self._clear()
                self._bars[stage] = shown
                self._show()

    def _clear(self) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")

    def _show(self) -> None:
        if self._is_terminal and self._bars:
            stage, bar = next(iter(self._bars.items()))
            self._stream.write(f"[{stage}] {bar}"[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()


class RunProgress:
    """How many rounds of a run are done, and how long the others will take if each does as the last one did."""

    def __init__(self, layout: RunLayout, rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout, self._rounds, self._clock = layout, rounds, clock
        self._done, self._at = self._count(), clock()

    def report(self) -> str | None:
        """To be called when a round may be done; None if none is."""
        done, now = self._count(), self._clock()
        if done == self._done:
            return None
        line = f"{done} of {self._rounds} rounds are done"
        if self._done < done < self._rounds:
            left = (now - self._at) / (done - self._done) * (self._rounds - done)
            line += f", about {_duration(left)} left"
        self._done, self._at = done, now
        return line

    def _count(self) -> int:
        return sum(files.exists(self._layout.feedback_history(round_)) for round_ in range(self._rounds))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "a minute"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
