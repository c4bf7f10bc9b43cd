"""Kills a process again and again, always in the midst of a write."""

import itertools
import os
import random
import signal
import threading
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

KILLS = 20
_MOMENTS = ("half written", "not yet in its place", "in its place")


def kill_repeatedly(
    context: ForkServerContext, stage: Callable[[list[str]], None], options: list[str], furthest: int
) -> int:
    """Starts ``stage(options)`` in a process of its own, which ends itself with SIGKILL, until one comes through.

    Each is killed at a file that is counted, never at a time, so that a slow machine sees the same: at its first,
    second, …, ``furthest`` file, drawn at random, in turns while that is half written, before it is moved to its
    place and after. Returns the number of kills.
    """
    chance = random.Random(0)
    for kills in itertools.count():
        assert kills < 10 * KILLS, "it does not get on"
        place, moment = chance.randint(1, furthest), _MOMENTS[kills % len(_MOMENTS)]
        process = context.Process(target=die, args=(stage, options, place, moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -signal.SIGKILL


def die(stage: Callable[[list[str]], None], options: list[str], place: int, moment: str) -> None:
    """``stage(options)``, ended by SIGKILL at its file ``place``, counted from 1, at one of the moments above."""
    written, lock, move = itertools.count(1), threading.Lock(), os.replace

    def replace(source: str, target: str, **options: Any) -> None:
        with lock:
            if next(written) == place:
                if moment == "half written":
                    os.truncate(source, os.path.getsize(source) // 2)
                if moment == "in its place":
                    move(source, target, **options)
                os.kill(os.getpid(), signal.SIGKILL)
        move(source, target, **options)

    os.replace = replace
    stage(options)
