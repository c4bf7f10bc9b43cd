"""Kills a process again and again, always in the midst of a write."""

import importlib
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from exchange.config import REPOSITORY

KILLS = 20
_MOMENTS = ("half written", "not yet in its place", "in its place")
_LIBRARIES = (
    *("diSegmenter.build_similarity", "diSegmenter.clip_score", "diSegmenter.foreground"),
    *("diSegmenter.segment_round", "detectron2_ext.engine.round", "generator.build", "generator.production"),
    *("tests.generator.tiny_pipelines", "diffusers.guiders", "kornia", "matplotlib.backends.backend_agg"),
    *("matplotlib.figure", "torch.utils.tensorboard"),
)


def kill_repeatedly(python: str, stage: str, options: list[str], furthest: int) -> int:
    """Starts ``stage`` of processes.py, which ends itself with SIGKILL, until it comes through; the number of kills.

    Each is killed at a file that is counted, never at a time, so that a slow machine sees the same: at its first,
    second, …, ``furthest`` file, drawn at random, in turns while that is half written, before it is moved to its
    place and after.
    """
    command = [python, "-m", __name__, stage, str(furthest), *options]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def kill(python: str, stage: str, options: list[str], place: int) -> None:
    """Starts ``stage`` once, which ends itself with SIGKILL when its file ``place`` is there."""
    call = f"kills.die(processes.{stage}, {options}, {place}, 'in its place')"
    command = [python, "-c", f"from tests.faults import kills, processes; {call}"]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL


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


def main(stage: Callable[[list[str]], None], furthest: int, options: list[str]) -> None:
    """Prints the number of kills; what is killed is forked from this process, which has all imports behind it."""
    for library in _LIBRARIES:
        importlib.import_module(library)
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    for kills in itertools.count():
        assert kills < 10 * KILLS, "it does not get on"
        place, moment = chance.randint(1, furthest), _MOMENTS[kills % len(_MOMENTS)]
        process = context.Process(target=die, args=(stage, options, place, moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    print(kills)


if __name__ == "__main__":
    from tests.faults import processes

    main(getattr(processes, sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
