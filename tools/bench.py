#!/usr/bin/env python3
"""Speed against something else on the same machine, on the same work, in the same run.

Prints both sides and their ratio as a table. NAME is one of tools/benchmarks/: each measures medians of several turns.
On a new GPU: bench precision guidance segment loader --device cuda --json gpu.json.
With --profile, prints where the time goes instead; paste and train_step can tell.
Benchmarks are not tests: no test asserts a time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.command_line import make_parser
from exchange.errors import UserError, run_cli
from exchange.run import versions
from tools import benchmarks

_WORKLOAD = "lvis_size"  # is a command of its own and measures nothing


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "paste --profile")
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != _WORKLOAD]
    parser.add_argument(
        "names", nargs="+", choices=names, metavar="NAME", help=f"what to measure: {', '.join(names)}"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="where to write the result, too (default: nowhere); -: JSON, no table",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to measure")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    return parser


def main() -> None:
    args = build_parser().parse_args()

    import torch  # only now: seconds that --help should not take

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU on this machine; leave the option out")
    benchmarks = {name: importlib.import_module(f"tools.benchmarks.{name}") for name in args.names}
    if args.profile:
        for name, benchmark in benchmarks.items():
            if not hasattr(benchmark, "profile"):
                raise UserError(f"{name} has no profile: leave --profile out, or take paste or train_step")
            print(benchmark.profile(args.device))
        return
    about = {"device": _device_name(args.device), "versions": versions()}
    results = []
    for name, benchmark in benchmarks.items():
        results.append({"name": name, **benchmark.measure(args.device), **about})
        if args.json != "-":
            print(as_table(results[-1]), flush=True)
    whole = results[0] if len(results) == 1 else results
    if args.json == "-":
        print(json.dumps(whole, indent=2))
    elif args.json:
        files.write_json(args.json, whole)


def as_table(result: Mapping[str, Any]) -> str:
    """A row for each number and word of ``result``; what is nested has the names of its groups in front."""
    from tabulate import tabulate

    return tabulate(list(_rows(result)), tablefmt="plain", disable_numparse=True)


def _rows(group: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in group.items():
        title = f"{before}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, f"{title}: ")
        elif isinstance(value, bool):
            yield title, "yes" if value else "no"
        else:
            yield title, f"{value:.4g}" if isinstance(value, float) else str(value)


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})"


if __name__ == "__main__":
    run_cli(main)
