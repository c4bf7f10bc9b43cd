"""The comparison of methods: what it computes from finished runs, and that finished runs stay as they are."""

import numpy as np
import pytest

from exchange import files
from exchange.errors import UserError
from tools import compare
from tools.compare import Point, Result, Run, plot, table_of


def result(method: str, seed: int, *ap_r: float, generated: int = 0) -> Result:
    points = [
        Point(ap=value + 10, ap_r=value, ap_c=value + 5, ap_f=value + 20, generated=generated * (round_ + 1))
        for round_, value in enumerate(ap_r)
    ]
    return Result(method, seed, points, seconds=60.0)


RESULTS = [
    *(result("None", 0, 20.0), result("None", 1, 30.0)),
    *(result("Ours", 0, 21.0, 23.0, generated=240), result("Ours", 1, 33.0, 35.0, generated=240)),
]


def cells(table: str, method: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_gains_are_taken_seed_by_seed_before_mean_and_sample_deviation():
    table = table_of(RESULTS, ["None", "Ours"])
    assert cells(table, "None")[1:3] == ["35.0 ± 7.1", "25.0 ± 7.1"]
    assert cells(table, "Ours") == (
        ["Ours", "39.0 ± 8.5", "29.0 ± 8.5", "34.0 ± 8.5", "49.0 ± 8.5", "4.0 ± 1.4", "480", "60", "2"]
    )


def test_a_method_without_the_seed_of_the_reference_has_no_gain_yet():
    table = table_of([result("None", 0, 20.0), result("Ours", 1, 35.0)], ["None", "Ours", "Later"])
    assert cells(table, "Ours")[5] == "" and "Later" not in table


def test_the_plot_is_a_picture(tmp_path):
    plot(RESULTS, ["None", "Ours", "Later"], str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_not_repeated_and_an_unfinished_one_goes_on(tmp_path, monkeypatch):
    finished: list[tuple[str, int]] = []

    def finish(self: Run, gpus: int, threads: int) -> None:
        finished.append((self.method, self.seed))
        done = result(self.method, self.seed, 20.0 + self.seed)
        files.write_json(files.join(self.folder, "result.json"), compare.asdict(done))

    monkeypatch.setattr(Run, "finish", finish)
    runs = [Run(f"{name}.yaml", seed, str(tmp_path), ()) for seed in (0, 1) for name in ("None", "Ours")]
    finish(runs[0], 1, 1)
    table = compare.compare(runs, ["None", "Ours"], str(tmp_path), jobs=2, gpus=1)
    assert sorted(finished) == [("None", 0), ("None", 1), ("Ours", 0), ("Ours", 1)]
    assert (tmp_path / "comparison.md").read_text() == f"{table}\n"
    assert {cells(table, name)[-1] for name in ("None", "Ours")} == {"2"}


def test_a_run_that_fails_names_its_log_and_keeps_the_time_that_it_took(tmp_path):
    run = Run(str(tmp_path / "absent.yaml"), 0, str(tmp_path), ())
    for _ in range(2):
        with pytest.raises(UserError, match=r"absent with seed 0 failed: mend what .*output\.txt ends with"):
            run.finish(gpus=1, threads=1)
    assert "there is no configuration" in (tmp_path / "absent/seed0/output.txt").read_text()
    assert files.read_json(str(tmp_path / "absent/seed0/seconds.json")) > 0 and run.result() is None


def test_classes_that_validation_lacks_leave_a_gap_and_not_a_zero():
    nothing = [result("None", 0, float("nan"))]
    assert cells(table_of(nothing, ["None"]), "None")[2] == "nan"
    assert np.isnan(nothing[0].points[-1].ap_r)
