"""Annotation files of LVIS's size: what reading them takes, first and from then on, against a bare ``json.load``.

``ours`` and ``other`` are the processor's seconds of the first reading of the training annotations into the data set of
the training, and of ``json.load``. ``lines`` has seconds and memory in MB of each case, each in a process of its own:
``peak`` and ``private`` are what it adds to a process with the libraries loaded. At a tenth of LVIS's size; for all of
it, with the growth from one to the other, ``python -m tools.benchmarks.lvis --scale 1`` (10 GB of memory, for
``json.load``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.evaluation.scoring import CocoTruth
from exchange.annotations import AnnotationFile, read_annotations
from tools.benchmarks import times_as_much
from tools.benchmarks.lvis_size import write_split

Line = dict[str, float]
_SECONDS, _PEAK, _PRIVATE, _RATIO = 2.0, 2500, 100, 1.2  # allowed


def measure(device: str, scale: float = 0.1) -> dict[str, Any]:
    """Both sides and the lines; ``device`` makes no difference."""
    with tempfile.TemporaryDirectory() as folder:
        train, val = (str(write_split(Path(folder), split, scale)) for split in ("train", "val"))
        cache = os.path.join(folder, "cache")
        lines = {
            "json.load": _in_a_process("json", train, cache),
            "training set, first": _in_a_process("dataset", train, cache),
            "training set, again": _in_a_process("dataset", train, cache),
            "stage 1": _in_a_process("counts", train, cache),
            "validation set, first": _in_a_process("truth", val, cache),
            "validation set, again": _in_a_process("truth", val, cache),
        }
    later = [lines[name] for name in ("training set, again", "stage 1", "validation set, again")]
    first, other = lines["training set, first"], lines["json.load"]
    compared = times_as_much(first["seconds"], other["seconds"], _RATIO)
    met = compared["met"] and first["peak"] <= _PEAK
    met = met and all(line["seconds"] <= _SECONDS and line["private"] <= _PRIVATE for line in later)
    return {
        **compared,
        "ours": first["seconds"],
        "other": other["seconds"],
        "unit": "seconds of the processor",
        "target": f"first ≤ {_RATIO} × json.load and {_PEAK} MB; then ≤ {_SECONDS} s and {_PRIVATE} MB a process",
        "met": met,
        "scale": scale,
        "lines": lines,
    }


def _counts(path: str) -> AnnotationFile:
    annotations = read_annotations(path)
    annotations.instance_counts(), annotations.category_names
    return annotations


def _truth(path: str) -> tuple[CocoTruth, DetectionDataset]:
    annotations = read_annotations(path)
    return CocoTruth(annotations), DetectionDataset(annotations, "/")


def _json(path: str) -> Any:
    with open(path, "rb") as file:
        return json.load(file)


_CASES: dict[str, Callable[[str], Any]] = {
    "json": _json,
    "dataset": lambda path: DetectionDataset.read(path, "/"),
    "counts": _counts,
    "truth": _truth,
}


def _in_a_process(case: str, path: str, cache: str) -> Line:
    code = f"from tools.benchmarks.lvis import report; report({case!r}, {path!r})"
    environment = {**os.environ, "MRCA_CACHE": cache}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    line: Line = json.loads(done.stdout)
    return line


def report(case: str, path: str) -> None:
    """Prints a line, as JSON."""
    peak, private, started = _peak_mb(), _private_mb(), time.process_time()
    kept = _CASES[case](path)
    line = {"seconds": time.process_time() - started, "peak": _peak_mb() - peak}
    print(json.dumps({**line, "private": _private_mb() - private}))
    del kept


def _peak_mb() -> float:
    return _kilobytes("status", "VmHWM") / 1024


def _private_mb() -> float:
    """Memory that this process shares with no other, without maps of files that others may have too."""
    return _kilobytes("smaps_rollup", "Private_Dirty") / 1024


def _kilobytes(file: str, name: str) -> int:
    lines = Path("/proc/self", file).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of LVIS's size (default: 1)")
    large = measure("cpu", parser.parse_args().scale)
    small = measure("cpu")
    growth = {
        name: {unit: value / max(small["lines"][name][unit], 1e-3) for unit, value in line.items()}
        for name, line in large["lines"].items()
    }
    print(json.dumps({**large, f"growth from {small['scale']}": growth}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
