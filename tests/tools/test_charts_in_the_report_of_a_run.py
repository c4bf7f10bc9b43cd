"""The charts on the page of a run."""

import dataclasses
import re

import pytest

from exchange import files
from exchange.feedback import read_feedback, write_feedback
from exchange.layout import RunLayout
from tests.tools.made_up_run import NAMES, layout, page, write_made_up_run
from tools import report
from tools.run_report.chart import HEIGHT, WIDTH, Chart, Line

__all__ = ["layout"]


def curves(*roots: str) -> dict[str, list[str]]:
    """Of each chart on the page of these runs: its lines, highest and lowest value, left and right end."""
    text = page(*roots)
    figures = re.findall(r"<figcaption>(.*)\n(.*)</figcaption>", text)
    lines = [re.findall(r">([┄━] .*?)</span>", labels) for _, labels in figures]
    ends = re.findall(r"<text[^>]*>(.*?)</text>", text)
    return {title: [*lines[n], *ends[4 * n : 4 * n + 4]] for n, (title, _) in enumerate(figures)}


def test_a_curve_has_two_points_and_a_value_of_zero_is_one(layout):
    both, metrics = ["━ run", "┄ control"], f"{layout.train_dir}/metrics.json"
    training = {"loss by iteration": ["3", "0.158", "1", "19"]}
    training |= {"learning rate by iteration": ["1", "0.0526", "1", "19"]}
    assert curves(layout.root) == {
        "AP": [*both, "50", "49.9", "start", "round 1"],
        "APr, rare classes": [*both, "50.9", "49", "start", "round 1"],
        **{title: ["━ run", *ends] for title, ends in training.items()},
    }
    control = RunLayout(f"{layout.root}/control")
    told, last = read_feedback(control.feedback_file), read_feedback(layout.feedback_history(1))
    write_feedback(control, dataclasses.replace(told, mean_mask_ap=0.0, ap_r=None))
    write_feedback(layout, dataclasses.replace(last, mean_mask_ap=0.0))
    without_rate = files.read_bytes(metrics).replace(b'"lr": 1.0', b'"lr": 0.0')
    files.write_bytes(f"{control.train_dir}/metrics.json", without_rate)
    training["learning rate by iteration"][1] = "0"
    files.remove(layout.feedback_history(-1))
    assert curves(layout.root) == {
        "AP": [*both, "49.9", "0", "round 0", "round 1"],
        "APr, rare classes": ["━ run", "50.9", "49.9", "round 0", "round 1"],
        **{title: [*both, *ends] for title, ends in training.items()},
    }
    files.remove(layout.feedback_history(0))
    assert re.search(
        r'points="0\.0,\S+ 560\.0,\S+" stroke', page(layout.root)
    )  # the control's, across it all
    files.remove(control.feedback_file)
    for path in (metrics, f"{control.train_dir}/metrics.json"):
        files.write_bytes(path, files.read_bytes(path).splitlines()[0])
    assert curves(layout.root) == {}


@pytest.mark.parametrize("labels", ["AB", "ABCDEFG"])
def test_each_of_several_runs_has_its_curves(labels, tmp_path):
    roots = [write_made_up_run(tmp_path / label, NAMES[:1], 1, images=False).root for label in labels]
    expected = [line for label in labels for line in (f"━ {label} run", f"┄ {label} control")]
    assert curves(*roots)["AP"][:-4] == expected
    assert [report._label(number) for number in (25, 26, 53)] == ["Z", "A1", "B2"]


def test_a_chart_reaches_from_its_lowest_to_its_highest_value_and_thins_out_what_is_long():
    points = [(n, (n - 50) ** 2) for n in range(101)]
    chart = Chart("a", [Line("b", points, "red"), Line("c", [(0, 5), (200, 5)], "blue")])
    path = [tuple(map(float, point.split(","))) for point in chart.path(chart.lines[0]).split()]
    assert path[0] == (0, 0) and path[50] == (WIDTH / 4, HEIGHT) and path[-1] == (WIDTH / 2, 0)
    assert chart.bounds() == ("0", "200", "0", "2.5e+03")
    assert Chart("a", [Line("b", [(0, 5), (2, 5)], "red")]).bounds() == ("0", "2", "5", "6")
    for count in (700, 100_000):
        many = Chart("a", [Line("b", [(n, n) for n in range(count)], "red")])
        last = many.path(many.lines[0]).split()
        assert 300 < len(last) < 405 and last[-1] == f"{WIDTH:.1f},0.0"
