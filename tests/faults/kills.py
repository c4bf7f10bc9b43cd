"""Kills a process again and again, each time a little further on."""

import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

KILLS = 20


def kill_repeatedly(
    context: ForkServerContext,
    stage: Callable[[list[str]], None],
    options: list[str],
    progress: Callable[[], int],
    whole: int,
    linger_s: float = 0.05,
) -> set[int]:
    """Starts ``stage(options)`` KILLS times in a process of its own, and ends it with SIGKILL.

    Args:
        progress: counts what is done so far, up to ``whole`` when the stage has done all of its work.
        linger_s: how long it may go on at most, drawn at random, once it has come far enough to be killed.

    Returns:
        The counts at which it was killed.
    """
    chance = random.Random(0)
    counts = set()
    for kill in range(KILLS):
        process = context.Process(target=stage, args=(options,))
        process.start()
        try:
            while process.is_alive() and progress() < whole * kill // KILLS:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, linger_s))
        finally:
            process.kill()
            process.join()
        counts.add(progress())
    return counts
