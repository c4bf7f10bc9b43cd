"""What the quickstart tells of a run of which only the pool's index and the cut-outs are left, as training reads it."""

import dataclasses
import io
import os
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from fvcore.common.config import CfgNode
from matplotlib.figure import Figure
from PIL import Image

from exchange import files
from exchange.config import REPOSITORY, flatten, load_config
from exchange.cutouts import encode_cutout
from exchange.errors import UserError
from exchange.feedback import Feedback, read_feedback, write_feedback
from exchange.layout import RunLayout
from exchange.manifest import read_round, write_manifest
from exchange.pool_index import write_index
from tests.diSegmenter.conftest import CATEGORIES, generate, pool_instance
from tests.exchange.test_formats import FEEDBACK
from tools import overview, quickstart, sheets
from tools.outlines import PASTED, REAL
from tools.quickstart import as_table, summarise


@pytest.fixture
def layout(tmp_path) -> RunLayout:
    """Two rounds: of six images each, and seven asked for, four and two were kept, all of them red; no annotation
    file, no image."""
    layout = RunLayout(str(tmp_path / "run"))
    red = encode_cutout(
        np.full((40, 48, 3), (255, 0, 0), np.uint8), np.full((40, 48), 255, np.uint8), [3, 4, 10, 11]
    )
    for round_, kept in enumerate((4, 2)):
        rows = []
        for item in generate(layout, round_, 6):
            reason = "" if item.instance < kept else "CLIP score"
            rows.append(pool_instance(round_, item.category_id, item.instance, reason=reason))
            files.write_bytes(layout.cutout(item.file), red)
            files.remove(layout.raw(item.file))
        write_index(layout, round_, rows)
        write_manifest(layout, dataclasses.replace(read_round(layout, round_)[0], asked={3: 4, 7: 3}))
    for round_ in (-1, 0, 1):
        ap = 10.0 * (round_ + 1)
        values = ([3, 7], [ap] * 2, [ap] * 2, [None] * 2, ap, ap, ap + 1, ap + 2, ap + 3)
        write_feedback(
            layout, Feedback(round_, 10, "model.pth", "0" * 64, "discs", *values, "2026-01-01T00:00:00")
        )
    return layout


@pytest.mark.parametrize(("latest_only", "pools"), [(False, [4, 6]), (True, [4, 2])])
def test_the_table_counts_what_the_index_lists(layout, latest_only, pools, monkeypatch, call):
    for round_, time in ((-1, 100), (0, 130), (1, 190)):
        os.utime(layout.feedback_history(round_), (time, time))
    summary = summarise(layout, layout, rounds=2, latest_only=latest_only)
    assert [entry["seconds"] for entry in summary["rounds"]] == [30, 60]
    assert [entry["pool"] for entry in summary["rounds"]] == pools
    assert [(entry["generated"], entry["kept"]) for entry in summary["rounds"]] == [(6, 4), (6, 2)]
    control = RunLayout(f"{layout.root}/control")
    write_feedback(
        control, dataclasses.replace(read_feedback(layout.feedback_history(0)), round=2, ap_c=None)
    )
    told = as_table(summary | {"control": summarise(layout, control, 0)["control"]})
    assert [line.rstrip() for line in told.splitlines()] == [
        "            AP    APr    APc    APf    generated    kept    pool",
        "--------  ----  -----  -----  -----  -----------  ------  ------",
        "baseline   0.0    1.0    2.0    3.0",
        "control   10.0   11.0          13.0",
        f"round 0   10.0   11.0   12.0   13.0            6       4       {pools[0]}",
        f"round 1   20.0   21.0   22.0   23.0            6       2       {pools[1]}",
    ]
    monkeypatch.setattr(overview, "write_overview", drawn := Mock())
    settings = ("SOLVER.MAX_ITER", 20, "SOLVER.ROUND_ITERS", 10, "SEGMENTER.LATEST_ROUND_ONLY", latest_only)
    call(overview, f"{layout.root}/", *settings)
    _, run, told, path = drawn.call_args.args
    assert (run.root, path) == (layout.root, f"{layout.pictures_dir}/overview.png")
    assert told == summary | {"control": {"ap": 10.0, "ap_r": 11.0, "ap_c": None, "ap_f": 13.0}}


def test_the_overview_shows_the_cut_outs_of_the_last_round_or_else_of_those_before(
    layout, tmp_path, monkeypatch
):
    train = str(tmp_path / "train.json")
    files.write_json(train, {"images": [], "annotations": [], "categories": CATEGORIES})
    data = {"TRAIN": ["discs"], "EXTRA_CATEGORIES": "", "CUSTOM": [["discs", train, str(tmp_path)]]}
    cfg = CfgNode({"DATASETS": data})
    monkeypatch.setattr(sheets, "training_sheet", training := Mock())
    training.return_value = Image.new("RGB", (9, 9)), None
    written, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *to, **how: written.append(self) or save(self, *to, **how)
    )
    overview.write_overview(cfg, layout, summarise(layout, layout, rounds=2), str(tmp_path / "a.png"))
    assert [panel.get_suptitle()[:12] for panel in written[0].subfigs] == [
        *("1, 2  drawn ", "3  pasted in", "what it brin")
    ]
    picture = np.asarray(Image.open(io.BytesIO(files.read_bytes(str(tmp_path / "a.png")))).convert("RGB"))
    assert (picture == (255, 0, 0)).all(axis=2).sum() > 1000
    assert training.call_args.args[1:] == (layout, 1, 4)
    write_index(layout, 2, [])
    many = [pool_instance(3, CATEGORIES[number % 2]["id"], number) for number in range(20)]
    for instance in many:
        files.write_bytes(layout.cutout(instance.file), files.read_bytes(layout.cutout("00_0003_0000.png")))
    write_index(layout, 3, many)
    red, blue, mask = "red disc 3", "blue_disc 3", " 2"  # with the number of dimensions
    for round_, shown in (
        (0, [red, blue, red, blue, "", *[mask] * 4, *[""] * 11]),
        (2, [red, blue, red, blue, red, *[mask] * 5, blue, *[""] * 4, mask, *[""] * 4]),
        (3, [*[red] * 5, *[mask] * 5, *[red] * 4, blue, *[mask] * 5]),
    ):
        overview._draw_generated(figure := Figure(), cfg, layout, round_)
        assert shown == [
            f"{axes.get_title()} {axes.images[0].get_array().ndim}" if axes.images else ""
            for axes in figure.axes
        ]
    mask = figure.axes[5].images[0]
    assert (mask.get_cmap().name, mask.get_clim()) == ("gray", (0, 255))


def test_the_gain_is_drawn_from_the_baseline_on_beside_that_of_the_control():
    summary = {"baseline": {"ap": 1.0, "ap_r": 2.0}, "control": {"ap": 3.0, "ap_r": 4.0}}
    overview._draw_gain(figure := Figure(), summary | {"rounds": [{"round": 0, "ap": 5.0, "ap_r": 6.0}]})
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    rare, every = {"APr (rare)": [2, 6], "APr (rare), control": [4, 4]}, {"AP": [1, 5], "AP, control": [3, 3]}
    assert lines == rare | every
    for name, color, style in (("APr (rare)", PASTED, "-"), ("AP", REAL, "-"), ("AP, control", REAL, "--")):
        (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == name]
        assert (tuple(255 * line.get_color()), line.get_linestyle()) == (color, style)
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == ["baseline", "round 0"]
    assert figure.axes[0].get_ylabel() == "mask AP, %" and figure.axes[0].get_legend()


def test_the_data_set_is_built_unless_both_its_files_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(quickstart.stopping, "run", lambda *_, **__: 3)
    with pytest.raises(UserError, match=r"build_lvis_digits\.py .* failed: mend what it says above"):
        quickstart._make_dataset()
    monkeypatch.setattr(quickstart, "_run", run := Mock())
    for part, built in (("train", 1), ("val", 2), ("", 2)):
        quickstart._make_dataset()
        assert run.call_count == built
        files.write_bytes(str(tmp_path / f"lvis_digits/lvis_digits_{part}.json"), b"")
    assert run.call_args.args[0][1:] == [
        str(REPOSITORY / "tools/build_lvis_digits.py"), str(tmp_path / "lvis_digits"), "--seed", "0",
    ]  # fmt: skip


def test_two_trainings_share_the_processors_unless_the_user_says_how_many_threads(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    for given, threads in ((None, "4"), ("7", "7")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert quickstart._environment() == os.environ | {
            "OMP_NUM_THREADS": threads, "MRCA_PYTHON": sys.executable,
        }  # fmt: skip


@pytest.mark.parametrize("from_scratch", [False, True])
def test_the_control_has_the_seed_and_the_settings_of_the_rounds_but_pastes_nothing(
    tmp_path, monkeypatch, call, from_scratch, capsys
):
    commands: list[list[str]] = []

    def run(command):
        commands.append(command)
        if str(tmp_path / "baseline") in command:
            layout = RunLayout(str(tmp_path / "baseline"))
            write_feedback(layout, dataclasses.replace(FEEDBACK, checkpoint="trained.pth"))

    monkeypatch.setattr(quickstart.stopping, "start", lambda command, **_: commands.append(command))
    monkeypatch.setattr(quickstart.stopping, "wait", lambda _: 0)
    monkeypatch.setattr(quickstart, "_run", run)
    monkeypatch.setattr(quickstart, "_make_dataset", made := Mock())
    monkeypatch.setattr(quickstart, "write_overview", Mock())
    monkeypatch.setattr(quickstart, "write_report", lambda _: "the report" if len(commands) > 2 else "early")
    summary = {"baseline": {}, "control": {}, "rounds": []}
    monkeypatch.setattr(quickstart, "summarise", told := Mock(return_value=summary))
    options = ["--from-scratch"] if from_scratch else []
    call(quickstart, "--out", tmp_path, "--seed", 7, *options, "SEGMENTER.LATEST_ROUND_ONLY", True)
    if from_scratch:
        baseline = str(REPOSITORY / "configs/digits/CenterNet2_digits.yaml")
        own = ["OUTPUT_DIR", str(tmp_path / "baseline"), "SEED", "7"]
        assert commands.pop(0) == ["bash", str(REPOSITORY / "launch.sh"), "--config", baseline, *own]
    assert commands[1][-2:] == ["--out", str(tmp_path)]
    commands[1] = commands[1][:-2]
    script, _, *measured = commands[2]
    assert (script, measured) == (sys.executable, ["measure", str(tmp_path)]) and made.called
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"Report: the report   Pictures: {tmp_path}/pictures   Summary: {tmp_path}/summary.json"
    content = files.read_json(str(tmp_path / "summary.json"))
    assert content | {"rounds": [], "seed": 7} == content and content["seconds"] > 0
    alone, pasting = (dict(flatten(load_config(command[3], command[4:]))) for command in commands[:2])
    assert alone["SEED"] == pasting["SEED"] == 7
    assert (alone["MODEL.WEIGHTS"] == "trained.pth") == from_scratch
    whole, control, _, latest_only = told.call_args.args
    assert (whole.root, control.root, latest_only) == (str(tmp_path), f"{tmp_path}/control", True)
    assert {key for key in alone if alone[key] != pasting[key]} == {
        "OUTPUT_DIR", "INPUT.USE_COPY_METHOD", "INPUT.INST_POOL_FEED",
    }  # fmt: skip
    assert alone["INPUT.USE_COPY_METHOD"] == "none" and not alone["INPUT.INST_POOL_FEED"]
    monkeypatch.setattr(quickstart.stopping, "wait", lambda _: -9)
    with pytest.raises(UserError, match=f"the control run failed: see {tmp_path}/control/logs/train.log"):
        call(quickstart, "--out", tmp_path)
    monkeypatch.setattr(quickstart.stopping, "end", ended := Mock())
    monkeypatch.setattr(quickstart.stopping, "start", lambda *_, **__: "the control")
    monkeypatch.setattr(quickstart, "_run", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        call(quickstart, "--out", tmp_path)
    ended.assert_called_once_with("the control")
