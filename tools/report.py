#!/usr/bin/env python3
"""One page for a run, or for several side by side: what was asked, drawn, kept and learned, class by class.

Writes report.html into the first run's folder, the table of classes as CSV and most pictures beside it into
report/ (comparison.html and comparison/ for several runs). The page opens from disk and needs no network.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.command_line import make_parser
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout

_TEMPLATES = Path(__file__).resolve().parent / "run_report"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "runs/quickstart")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder, or several")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="HTML file; the folder of its name is for what it loads (default: in the first run's folder)",
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    print(write_report(args.runs, args.out))


def write_report(roots: Sequence[str], out: str | None = None) -> str:
    """Writes the page of the runs in the folders ``roots``; returns its path.

    Raises UserError where a folder holds no run, or a file of it is damaged.
    """
    from tools.pool_stats import by_round
    from tools.run_report import classes, sprites, twins  # only now, with jinja2: what --help should not take
    from tools.run_report.content import RunContent
    from tools.run_report.pictures import allocation_pictures, training_pictures

    roots = [root.rstrip("/") for root in roots]
    if len(set(roots)) < len(roots):
        raise UserError(f"the run {max(roots, key=roots.count)} is given twice: give different ones")
    page = out or (RunLayout(roots[0]).report if len(roots) == 1 else files.join(roots[0], "comparison.html"))
    if not page.endswith(".html"):
        raise UserError(f"--out {page}: the name of a page ends with .html")
    folder = page.removesuffix(".html")
    beside = quote(folder.rpartition("/")[2])  # as an address: the page takes a space for the end of one
    runs = {_label(number): RunContent(RunLayout(root)) for number, root in enumerate(roots)}
    sheets: dict[int, list[str]] = defaultdict(list)
    pictures = {}
    for label, run in runs.items():
        place = (f"{folder}/{label}", f"{beside}/{label}")
        pictures[label] = training_pictures(run.layout, run.rounds, *place)
        for id_, some in sprites.write_sheets(run.layout, run.rounds, *place).items():
            sheets[id_] += some
    files.write_bytes(f"{folder}/classes.csv", classes.as_csv(runs).encode())
    columns, rows = classes.table(runs, sheets)
    content = {
        "runs": runs,
        "columns": columns,
        "rows": rows,
        "groups": classes.GROUPS,
        "criteria": {label: run.criterion for label, run in runs.items()},
        "csv": f"{beside}/classes.csv",
        "sprites": sprites,
        "qualities": {label: by_round(run.quality) for label, run in runs.items() if run.quality},
        "charts": _charts(runs),
        "twins": {label: twins.read_pairs(run.layout, run.rounds) for label, run in runs.items()},
        "allocations": {label: allocation_pictures(run.layout, run.rounds) for label, run in runs.items()},
        "pictures": pictures,
        "links": {label: _round_reports(run, page) for label, run in runs.items()},
        "settings": _settings(runs),
    }
    files.write_bytes(page, _render(content).encode())
    return page


def _label(number: int) -> str:
    """A, B, …, Z, then A1, B1, …"""
    turn, letter = divmod(number, 26)
    return chr(ord("A") + letter) + (str(turn) if turn else "")


def _render(content: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["zip"] = zip
    environment.filters["number"] = lambda value, form=".1f": "" if value is None else format(value, form)
    return environment.get_template("page.html").render(content)


def _charts(runs: Mapping[str, Any]) -> list[Any]:
    """AP and APr round by round, the loss and the learning rate; a colour for each run, the control's lines dashed."""
    from tools.run_report.chart import Chart, Line
    from tools.run_report.content import when

    colours = itertools.cycle(("#2e86ff", "#ff7a00", "#16823c", "#8a2be2", "#be2828", "#5f5f5f"))
    by_round: dict[str, list[Line]] = {"mean_mask_ap": [], "ap_r": []}
    by_iteration: dict[str, list[Line]] = {"total_loss": [], "lr": []}
    for (label, run), colour in zip(runs.items(), colours, strict=False):
        name = f"{label} " if len(runs) > 1 else ""
        for key, lines in by_round.items():
            values = [(f.round, getattr(f, key)) for f in run.feedbacks]
            points = [(round_, value) for round_, value in values if value is not None]
            lines.append(Line(f"{name}run", points, colour))
            if points and run.control and getattr(run.control, key) is not None:
                level = getattr(run.control, key)
                ends = [(points[0][0], level), (max(points[-1][0], points[0][0] + 1), level)]
                lines.append(Line(f"{name}control", ends, colour, dashed=True))
        for key, lines in by_iteration.items():
            for which, metrics in (("run", run.metrics), ("control", run.control_metrics)):
                points = [(line["iteration"], line[key]) for line in metrics if key in line]
                lines.append(Line(f"{name}{which}", points, colour, dashed=which == "control"))
    ap, ap_r, loss, rate = (
        [line for line in lines if len(line.points) > 1] for lines in (by_round | by_iteration).values()
    )
    charts = [Chart("AP", ap, when), Chart("APr, rare classes", ap_r, when)]
    charts += [Chart("loss by iteration", loss), Chart("learning rate by iteration", rate)]
    return [chart for chart in charts if chart.lines]


def _round_reports(run: Any, page: str) -> dict[int, str]:
    """Where the report of each round is, as the page names it."""
    found = {}
    for round_ in run.rounds:
        path = files.join(run.layout.pictures_dir, f"report_rd{round_.number:02}.html")
        if files.exists(path):
            here = "://" not in path and "://" not in page
            found[round_.number] = (
                quote(os.path.relpath(path, os.path.dirname(page) or ".")) if here else path
            )
    return found


def _settings(runs: Mapping[str, Any]) -> list[tuple[str, list[str], str, bool]]:
    """Key, value in each run, default, and whether the runs differ, of the settings that are not all as the default."""
    changed = {label: run.changed_settings for label, run in runs.items()}
    table = []
    for key in sorted(set().union(*changed.values())):
        default = next(of[key][1] for of in changed.values() if key in of)
        values = [str(run.settings.get(key, "")) for run in runs.values()]
        table.append((key, values, "" if default is None else str(default), len(set(values)) > 1))
    return table


if __name__ == "__main__":
    run_cli(main)
