"""The comparison of methods: what it computes from finished runs, and that finished runs stay as they are."""

import dataclasses
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exchange import files
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.feedback import write_feedback
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, Manifest, write_manifest
from exchange.run import claim_run
from exchange.stopping import Stopped
from tests.exchange.test_formats import FEEDBACK
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


def test_the_table_has_means_and_sample_deviations_over_the_seeds_and_gains_seed_by_seed():
    second = dataclasses.replace(result("Ours", 1, 33.0, 35.0, generated=300), seconds=65.4)
    results = [*RESULTS[:3], second, result("Of no common seed", 7, 40.0, generated=40)]
    table = table_of(results, ["None", "Ours", "Later", "Of no common seed"])
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines()]
    assert [rows[0], *rows[2:]] == [
        ["", "AP", "APr", "APc", "APf", "APr gained over None", "generated", "seconds", "seeds"],
        ["None", "35.0 ± 7.1", "25.0 ± 7.1", "30.0 ± 7.1", "45.0 ± 7.1", "", "0", "60", "2"],
        ["Ours", "39.0 ± 8.5", "29.0 ± 8.5", "34.0 ± 8.5", "49.0 ± 8.5", "4.0 ± 1.4", "540", "63", "2"],
        ["Of no common seed", "50.0", "40.0", "45.0", "60.0", "", "40", "60", "1"],
    ]
    assert set("".join(rows[1])) == {"-"}  # Markdown


def test_a_finished_run_is_not_repeated_and_an_unfinished_one_goes_on(tmp_path, monkeypatch):
    finished: list[tuple[str, int]] = []

    def finish(self: Run, gpus: int, threads: int) -> None:
        finished.append((self.method, self.seed, threads))
        done = result(self.method, self.seed, 20.0 + self.seed)
        files.write_json(files.join(self.folder, "result.json"), compare.asdict(done))

    monkeypatch.setattr(Run, "finish", finish)
    runs = [Run(f"{name}.yaml", seed, str(tmp_path), ()) for seed in (0, 1) for name in ("None", "Ours")]
    monkeypatch.setattr(compare.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(compare, "plot", lambda *_: None)
    finish(runs[0], 1, 9)
    table = compare.compare(runs, ["None", "Ours"], str(tmp_path), jobs=2, gpus=1)
    assert sorted(finished) == [("None", 0, 9), ("None", 1, 4), ("Ours", 0, 4), ("Ours", 1, 4)]
    assert (tmp_path / "comparison.md").read_text() == f"{table}\n"
    told = files.read_json(str(tmp_path / "comparison.json"))
    assert told == [compare.asdict(result(run.method, run.seed, 20.0 + run.seed)) for run in runs]
    assert {cells(table, name)[-1] for name in ("None", "Ours")} == {"2"}
    compare.compare([*runs, Run("None.yaml", 2, str(tmp_path), ())], ["None"], str(tmp_path), jobs=9, gpus=1)
    assert finished[4:] == [("None", 2, 1)]


def test_a_run_that_fails_names_its_log_which_goes_on_and_keeps_the_time_that_it_took(tmp_path, monkeypatch):
    run = Run(str(tmp_path / "absent.yaml"), 0, str(tmp_path), ())
    files.write_json(str(tmp_path / "absent/seed0/seconds.json"), 1000.0)
    monkeypatch.setattr(
        compare.stopping, "run", lambda *_, stdout, stderr, env: stdout.write(b"a") + stderr.write(b"b")
    )
    for _ in range(2):
        with pytest.raises(UserError, match=r"absent with seed 0 failed: mend what .*output\.txt ends with"):
            run.finish(gpus=1, threads=1)
    assert (tmp_path / "absent/seed0/output.txt").read_text() == "ab" * 2
    assert files.read_json(str(tmp_path / "absent/seed0/seconds.json")) > 1000 and run.result() is None


def test_what_was_done_before_a_run_failed_is_reported_and_no_other_begins(tmp_path, monkeypatch):
    begun, reported, given_up, report = [], threading.Event(), threading.Event(), compare._report

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options):
            super().shutdown(**options)
            given_up.set()

    def finish(self: Run, gpus: int, threads: int) -> None:
        begun.append(self.seed)
        if self.seed == 1:
            assert reported.wait(60)
            raise UserError("seed 1 failed")
        assert self.seed == 0 or given_up.wait(60)
        done = result(self.method, self.seed, 20.0)
        files.write_json(files.join(self.folder, "result.json"), compare.asdict(done))

    monkeypatch.setattr(Run, "finish", finish)
    monkeypatch.setattr(compare, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(compare, "plot", lambda *_: None)
    monkeypatch.setattr(compare, "_report", lambda *given: report(*given) and reported.set())
    with pytest.raises(UserError, match="seed 1 failed"):
        compare.compare([Run("a", seed, str(tmp_path), ()) for seed in range(4)], ["a"], str(tmp_path), 1, 1)
    assert begun in ([0, 1], [0, 1, 2])  # what had begun by then comes to its end
    assert cells((tmp_path / "comparison.md").read_text(), "a")[-1] == "1"


def test_what_is_stopped_waits_for_no_run_but_ends_what_runs(tmp_path, monkeypatch):
    ended = threading.Event()

    def finish(self: Run, gpus: int, threads: int) -> None:
        if self.seed:
            raise Stopped(15)
        assert ended.wait(60)

    monkeypatch.setattr(Run, "finish", finish)
    monkeypatch.setattr(compare.stopping, "end_children", ended.set)
    with pytest.raises(Stopped):
        compare.compare([Run("a", seed, str(tmp_path), ()) for seed in (0, 1)], ["a"], str(tmp_path), 2, 1)
    assert ended.is_set()


def test_the_table_has_the_methods_in_the_order_in_which_they_were_given_with_and_without_matplotlib(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(Run, "result", lambda self: result(self.method, self.seed, 20.0))
    runs = [Run(f"{method}.yaml", 0, str(tmp_path), ()) for method in "abc"]
    table = compare.compare(runs, ["c", "a", "b"], str(tmp_path), 1, 1)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["c", "a", "b"]
    assert "APr gained over c" in table


def test_a_finished_run_has_a_point_for_each_round_with_all_that_it_generated_by_then(tmp_path, monkeypatch):
    def run_rounds(command, *, env, **_):
        asked = "--config x/Ours.yaml --num-gpus 2 SOLVER.MAX_ITER 4 OUTPUT_DIR {} SEED 3"
        assert command == [
            *(sys.executable, str(REPOSITORY / "tools/run_rounds.py")),
            *asked.format(tmp_path / "Ours/seed3").split(),
        ]
        assert env["OMP_NUM_THREADS"] == "5"
        layout = RunLayout(str(tmp_path / "Ours/seed3"))
        for round_ in (-1, 0, 1):
            scores = {"mean_mask_ap": 9.0 + round_, "ap_c": 5.0, "ap_f": 3.0}
            write_feedback(layout, dataclasses.replace(FEEDBACK, round=round_, **scores))
        for round_, shard, count in ((0, 0, 2), (0, 1, 1), (1, 0, 4)):
            one = GeneratedInstance("00_0001_0000.png", 1, 0, 7, "{}", "x", False)
            shards = 2 - round_
            write_manifest(layout, Manifest(round_, shard, shards, True, {1: 4}, [one] * count, 1.0))
        return 0

    monkeypatch.setattr(compare.stopping, "run", run_rounds)
    run = Run("x/Ours.yaml", 3, str(tmp_path), ("SOLVER.MAX_ITER", "4"))
    assert run.result() is None
    run.finish(gpus=2, threads=5)
    assert 0 <= run.result().seconds < 1000
    files.write_json(f"{run.folder}/seconds.json", 1000.0)  # before it failed
    run.finish(gpus=2, threads=5)
    assert run.result().seconds > 1000
    assert run.result().points == [
        Point(ap=ap, ap_r=None, ap_c=5.0, ap_f=3.0, generated=generated)
        for ap, generated in ((9.0, 3), (10.0, 7))
    ]
    assert (run.result().method, run.result().seed) == ("Ours", 3)


def test_every_configuration_gets_every_seed_and_a_mistake_is_said_before_the_first_run(
    tmp_path, monkeypatch, capsys
):
    configs, asked = compare.build_parser().parse_args([]).configs, []
    assert len(set(configs)) == 8 and all(map(files.exists, configs))
    monkeypatch.setattr(compare, "compare", lambda *given: asked.append(given) or "the table")
    for path in ("a/None.yaml", "a/Ours.yaml", "b/Ours.yaml", "bad.yaml"):
        files.write_bytes(str(tmp_path / path), b"{INPUT: {FORMATT: RGB}}" if path == "bad.yaml" else b"{}")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["compare.py", "--out", str(tmp_path), *map(str, arguments)])
        compare.main()

    configs = [tmp_path / "a/None.yaml", tmp_path / "a/Ours.yaml"]
    call("--configs", *configs, "--seeds", 2, "--jobs", 3, "--gpus", 4, "DATALOADER.NUM_WORKERS", 2)
    settings = ("DATALOADER.NUM_WORKERS", "2")
    runs = [Run(str(config), seed, str(tmp_path), settings) for seed in (0, 1) for config in configs]
    assert asked == [(runs, ["None", "Ours"], str(tmp_path), 3, 4)]
    assert capsys.readouterr().out == f"the table\n\n{tmp_path}/comparison.md   {tmp_path}/comparison.png\n"
    monkeypatch.chdir(tmp_path)
    for given, out in ((), str(REPOSITORY / "runs/compare")), (("--out", "mine"), str(tmp_path / "mine")):
        monkeypatch.setattr("sys.argv", ["compare.py", "--configs", "a/None.yaml", *given])
        compare.main()
        assert asked.pop() == (
            [Run(str(configs[0]), seed, out, ()) for seed in range(3)],
            ["None"],
            out,
            1,
            1,
        )
    for option in ("seeds", "jobs", "num-gpus"):
        with pytest.raises(UserError, match=f"--{option} 0: give 1 or more"):
            call("--configs", *configs, f"--{option}", 0)
    with pytest.raises(UserError, match="FORMATT"):
        call("--configs", *configs, tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="FORMATT"):
        call("INPUT.FORMATT", "RGB", "--configs", *configs)
    with pytest.raises(UserError, match="the same file name"):
        call("--configs", *configs, tmp_path / "b/Ours.yaml")
    assert len(asked) == 1
    folder = tmp_path / "Ours/seed1"
    claim_run(load_config(str(configs[1]), ["OUTPUT_DIR", str(folder), "SEED", "1"]))
    call("--configs", *configs, "--seeds", 2)
    with pytest.raises(
        UserError, match=f"{folder} belongs to a run with SOLVER.BASE_LR 0.0001, not 0.1: choose"
    ):
        call("--configs", *configs, "--seeds", 2, "SOLVER.BASE_LR", 0.1)
    assert len(asked) == 2


def test_the_plot_has_mean_and_sample_deviation_of_each_method_over_the_rounds_that_all_seeds_have(
    tmp_path, monkeypatch
):
    drawn, colors, axes = [], [], []

    def errorbar(axis, *values, label, color, **style):
        drawn.append((label, *values))
        colors.append(color)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **options: axes.extend(figure.axes))
    one_more = result("Ours", 0, 21.0, 25.0, 99.0, generated=240)
    plot([one_more, RESULTS[3], RESULTS[0]], ["None", "Not yet", "Ours"], str(tmp_path / "x.png"))
    assert [label for label, *_ in drawn] == ["None", "Ours"] * 2
    for (_, *of_none), (_, images, *of_ours), more in ((*drawn[:2], 10), (*drawn[2:], 0)):
        assert [values.tolist() for values in of_none[1:]] == [[20 + more], [0]]
        assert 0 < abs(of_none[0][0]) < 24  # a little apart
        np.testing.assert_allclose(of_ours, [[27 + more, 30 + more], [72**0.5, 50**0.5]])
        assert np.diff(images) == 240 and abs(images[0] - 240) < 24
    assert [axis.get_ylabel() for axis in axes] == ["AP (mask, %)", "APr (mask, %)"]
    assert {axis.get_xlabel() for axis in axes} == {"images generated"}
    assert colors[:2] == colors[2:] and colors[0] != colors[1]
    assert axes[1].get_legend()


def test_among_many_rounds_and_methods_each_point_stands_by_its_own_round(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "errorbar", lambda axis, images, *_, **style: drawn.append(images))
    monkeypatch.setattr(Axes, "legend", lambda *_, **style: None)
    methods, rounds = [f"method {number}" for number in range(8)], np.arange(1, 51)
    points = [Point(20.0, 20.0, 20.0, 20.0, 240 * number) for number in rounds.tolist()]
    results = [Result(method, 0, points, 60.0) for method in methods]
    plot(results, methods, str(tmp_path / "x.png"))
    assert len(drawn) == 2 * len(methods)
    assert all((abs(images / 240 - rounds) < 0.25).all() for images in drawn)
    assert len({images[0] for images in drawn}) == len(methods)  # a little apart


def test_classes_that_validation_lacks_leave_a_gap_and_not_a_zero(tmp_path):
    coco = [Result(name, 0, [Point(9.0, None, None, None, 0)], 60.0) for name in ("None", "Ours")]
    assert cells(table_of(coco, ["None", "Ours"]), "Ours")[2:6] == ["nan"] * 4
    plot(coco, ["None", "Ours"], str(tmp_path / "x.png"))
