"""The pool index at DiverGen's scale, 1.2 million instances: opening, memory, a draw, adding a round."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from exchange import files
from exchange.config import REPOSITORY
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance, write_index
from tools.benchmarks import times_as_much

_CLASSES, _PER_ROUND, _INSTANCES = 1203, 4812, 1_200_000
_DRAWS = 20_000
LIMITS = {"open_s": 2.0, "resident_mb": 600.0, "draw_us": 20.0, "add_round_growth": 1.5}


def measure(device: str) -> dict[str, Any]:
    """Times and memory of a process that does nothing but read; ``device`` makes no difference.

    ``add_round_growth`` is the time to add a round to the full pool, relative to the first round's.
    """
    rounds = -(-_INSTANCES // _PER_ROUND)
    with tempfile.TemporaryDirectory() as folder:
        layout = RunLayout(folder)
        rows = [_instance(round_=0, number=number) for number in range(_PER_ROUND)]
        first = _median_time(lambda: write_index(layout, 0, rows))
        paths = (layout.pool_index, layout.pool_outlines)
        contents = [(path, files.read_bytes(path(0))) for path in paths]
        for round_ in range(1, rounds):
            for path, content in contents:
                files.write_bytes(path(round_), content)
        last = _median_time(lambda: write_index(layout, rounds, rows))
        reader = [sys.executable, "-m", "tools.benchmarks.pool", folder, str(rounds)]
        ours = json.loads(subprocess.run(reader, cwd=REPOSITORY, check=True, capture_output=True).stdout)
    ours |= {"add_round_s": last, "add_round_growth": last / first}
    worst = max(ours[name] / limit for name, limit in LIMITS.items())
    return {"ours": ours, "other": LIMITS, **times_as_much(worst, 1.0, 1.0)}


def _read(root: str, rounds: int) -> dict[str, float]:
    """What a process that opens the pool and draws from it needs."""
    started = time.perf_counter()
    index = PoolIndex(RunLayout(root), range(rounds))
    opened = time.perf_counter() - started
    drawn = np.random.default_rng(0).integers(len(index), size=_DRAWS).tolist()
    started = time.perf_counter()
    for row in drawn:
        index.name(row), index.category_ids[row]
    draw = (time.perf_counter() - started) / _DRAWS
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return {
        "instances": len(index),
        "open_s": opened,
        "resident_mb": resident / 1024,
        "draw_us": draw * 1e6,
    }


def _instance(round_: int, number: int) -> PoolInstance:
    category_id = 1 + number % _CLASSES
    name = RunLayout.instance_name(round_, category_id, number)
    return PoolInstance(
        file=name,
        round=round_,
        category_id=category_id,
        width=512,
        height=512,
        bbox=[80, 60, 300, 340],
        area=70_000,
        segmentation=[list(range(400))],
        objects=1,
        clip_white=24.0,
        clip_black=26.5,
        reason="",
        seed=number,
        model="stabilityai/stable-diffusion-3-medium-diffusers",
        prompt=f"a photo of class {category_id} in a white background",
        cutout=RunLayout.cutout_name(name),
    )


def _median_time(action: Any) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    json.dump(_read(sys.argv[1], int(sys.argv[2])), sys.stdout)
