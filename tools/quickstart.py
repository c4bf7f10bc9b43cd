"""Three MRCA rounds on LVIS-Digits with the embedded models, against the same training without generated data.

Ends with a table, summary.json, pictures and a page of it all (report.html) in the run folder.
Started again, it goes on where it was stopped.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate

from exchange import files, stopping
from exchange.catalog import dataset_paths, datasets_root
from exchange.command_line import left_out_without_matplotlib, make_parser
from exchange.config import (
    REPOSITORY,
    add_config_arguments,
    below_working_directory,
    find_config,
    from_repository,
    load_config,
)
from exchange.errors import UserError, run_cli
from exchange.feedback import Feedback, read_feedback
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.pool_index import PoolIndex
from exchange.run import num_rounds, versions
from tools.overview import write_overview
from tools.report import write_report

_CONFIG = "configs/digits/MRCA_digits.yaml"
_BASELINE_CONFIG = "configs/digits/CenterNet2_digits.yaml"
_LAUNCH = ("bash", str(REPOSITORY / "launch.sh"))


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "--seed 1 --out runs/second")
    parser.add_argument("--out", metavar="RUN", help="run folder (default: runs/quickstart)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")
    parser.add_argument(
        "--from-scratch", action="store_true", help="train the baseline, too (about 15 minutes)"
    )
    add_config_arguments(parser, _CONFIG)
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    started = time.monotonic()
    out = below_working_directory(args.out) if args.out else from_repository("runs/quickstart")
    overrides = [*args.opts, "SEED", str(args.seed)]

    _make_dataset()
    if args.from_scratch:
        overrides += ["MODEL.WEIGHTS", _train_baseline(f"{out}/baseline", args.seed)]
    cfg = load_config(args.config, overrides)
    rounds = num_rounds(cfg)
    common = ["--config", find_config(args.config), *overrides]
    print(f"Control and {rounds} rounds of {cfg.SOLVER.ROUND_ITERS} iterations, side by side ...")
    control = _start_control(f"{out}/control", common)
    try:
        _run([*_script("run_rounds"), *common, "--out", out])
        code = stopping.wait(control)
    except BaseException:
        stopping.end(control)
        raise
    if code:
        raise UserError(f"the control run failed: see {out}/control/logs/train.log")

    latest_only = cfg.SEGMENTER.LATEST_ROUND_ONLY
    summary = summarise(RunLayout(out), RunLayout(f"{out}/control"), rounds, latest_only)
    summary |= {"seconds": time.monotonic() - started, "seed": args.seed, "versions": versions()}
    files.write_json(files.join(out, "summary.json"), summary)
    overview = files.join(out, "pictures", "overview.png")
    with left_out_without_matplotlib(overview):
        write_overview(
            load_config(args.config, [*overrides, "OUTPUT_DIR", out]), RunLayout(out), summary, overview
        )
    _run([*_script("pool"), "measure", out])
    report = write_report([out])
    print(
        f"\n{as_table(summary)}\n\nReport: {report}   Pictures: {out}/pictures   Summary: {out}/summary.json"
    )


def summarise(run: RunLayout, control: RunLayout, rounds: int, latest_only: bool = False) -> dict[str, Any]:
    """Mask APs of the starting weights, of the control and of each round, with what each round made.

    ``latest_only``: the pool of a round is that round alone (SEGMENTER.LATEST_ROUND_ONLY).
    """
    return {
        "baseline": _aps(read_feedback(run.feedback_history(-1))),
        "control": _aps(read_feedback(control.feedback_file)),
        "rounds": [_round(run, round_, latest_only) for round_ in range(rounds)],
    }


def as_table(summary: dict[str, Any]) -> str:
    """The summary for a person to read."""
    rows = [["baseline", *summary["baseline"].values()], ["control", *summary["control"].values()]]
    for entry in summary["rounds"]:
        rows.append([f"round {entry['round']}", *(entry[key] for key in ("ap", "ap_r", "ap_c", "ap_f"))])
        rows[-1] += [entry["generated"], entry["kept"], entry["pool"]]
    headers = ["", "AP", "APr", "APc", "APf", "generated", "kept", "pool"]
    return tabulate(rows, headers, floatfmt=".1f", missingval="")


def _aps(feedback: Feedback) -> dict[str, float | None]:
    return {
        "ap": feedback.mean_mask_ap,
        "ap_r": feedback.ap_r,
        "ap_c": feedback.ap_c,
        "ap_f": feedback.ap_f,
    }


def _round(run: RunLayout, round_: int, latest_only: bool) -> dict[str, Any]:
    manifests = read_round(run, round_)
    kept = len(PoolIndex(run, [round_]))
    pool = kept if latest_only else len(PoolIndex(run, range(round_ + 1)))
    started, ended = (
        os.path.getmtime(path) for path in (run.feedback_history(round_ - 1), run.feedback_history(round_))
    )
    return (
        {"round": round_}
        | _aps(read_feedback(run.feedback_history(round_)))
        | {"pool": pool, "generated": sum(len(m.instances) for m in manifests), "kept": kept}
        | {"seconds": ended - started}
    )


def _make_dataset() -> None:
    cfg = load_config(from_repository(_BASELINE_CONFIG))
    try:
        dataset_paths(cfg.DATASETS.TRAIN[0], cfg), dataset_paths(cfg.DATASETS.TEST[0], cfg)
    except UserError:
        folder = os.path.join(datasets_root(), "lvis_digits")
        print(f"Building the data set LVIS-Digits in {folder} ...")
        _run([*_script("build_lvis_digits"), folder, "--seed", "0"])


def _train_baseline(folder: str, seed: int) -> str:
    print("Training the baseline ...")
    _run([*_LAUNCH, "--config", from_repository(_BASELINE_CONFIG), "OUTPUT_DIR", folder, "SEED", str(seed)])
    return read_feedback(RunLayout(folder).feedback_file).checkpoint


def _start_control(folder: str, common: list[str]) -> subprocess.Popen[bytes]:
    """The same iterations from the same weights with nothing pasted, and so without rounds."""
    command = [*_LAUNCH, *common, "OUTPUT_DIR", folder]
    command += ["INPUT.USE_COPY_METHOD", "none", "INPUT.INST_POOL_FEED", "False"]
    files.make_dirs(folder)
    with open(f"{folder}/output.txt", "ab") as output:
        return stopping.start(command, env=_environment(), stdout=output, stderr=output)


def _script(name: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / f"tools/{name}.py")]


def _run(command: list[str]) -> None:
    if stopping.run(command, env=_environment()):
        raise UserError(
            f"{' '.join(command)!r} failed: mend what it says above, then start the quickstart again"
        )


def _environment() -> dict[str, str]:
    """One thread for each of the two processes that train side by side: faster than two that share two cores."""
    threads = str(max((os.cpu_count() or 2) // 2, 1))
    return os.environ | {
        "MRCA_PYTHON": sys.executable,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }


if __name__ == "__main__":
    run_cli(main)
