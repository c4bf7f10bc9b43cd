"""Mean and standard deviation over the quickstart's runs with several seeds, as a Markdown table.

usage: python tools/seed_statistics.py runs/seed0/summary.json runs/seed1/summary.json ...
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.errors import UserError, run_cli

_METRICS = {"ap": "AP", "ap_r": "APr", "ap_c": "APc", "ap_f": "APf"}


def rows_of(summaries: list[dict[str, Any]]) -> list[list[str]]:
    """One row per training (baseline, control, rounds) and one for the last round's gain over the control."""
    rounds = len(summaries[0]["rounds"])
    named = {"baseline": [s["baseline"] for s in summaries], "control": [s["control"] for s in summaries]}
    named |= {f"round {index}": [s["rounds"][index] for s in summaries] for index in range(rounds)}
    values = {
        name: np.array([[entry[key] for key in _METRICS] for entry in entries], dtype=np.float64)
        for name, entries in named.items()
    }
    values["gain over the control"] = values[f"round {rounds - 1}"] - values["control"]
    return [[name, *_with_deviation(table)] for name, table in values.items()]


def _with_deviation(table: np.ndarray) -> list[str]:
    means, deviations = table.mean(axis=0), table.std(axis=0, ddof=1)
    return [f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in zip(means, deviations, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("summaries", nargs="+", metavar="summary.json")
    args = parser.parse_args()
    summaries = [files.read_json(path) for path in args.summaries]
    if len(summaries) < 2:
        raise UserError("one summary has no deviation: give those of several seeds")
    if len({len(summary["rounds"]) for summary in summaries}) > 1:
        raise UserError("the summaries have different numbers of rounds: give runs of the same configuration")
    print(f"{len(summaries)} seeds: {', '.join(str(summary['seed']) for summary in summaries)}\n")
    print(tabulate(rows_of(summaries), ["", *_METRICS.values()], tablefmt="github"))


if __name__ == "__main__":
    run_cli(main)
