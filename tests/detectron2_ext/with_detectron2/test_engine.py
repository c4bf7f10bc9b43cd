"""``launch.sh --engine detectron2``: the same run, trained and evaluated by Detectron2."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip(
    "detectron2", reason="Detectron2 is not installed: launch.sh --engine detectron2 was not tested"
)

from detectron2_ext import train_net
from detectron2_ext.engine.checkpoints import RunCheckpoints
from detectron2_ext.with_detectron2.training import _check
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.feedback import read_feedback
from tests.detectron2_ext.engine.small_run import write_config
from tests.detectron2_ext.engine.tiny import ALONE

ENGINES = ("own", "detectron2")


def _train(folder: Path, *engines: str, **solver: object) -> dict:
    """Runs a round with each engine, one after the other; returns the last checkpoint."""
    folder.mkdir()
    config = write_config(folder, **solver)
    for engine in engines:
        train_net.main(["--config", str(config), "--engine", engine, "SEED", "7"])
    last = folder / "run/train/last_checkpoint"
    return torch.load(folder / "run/train" / last.read_text(), weights_only=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Runs of two rounds by every pair of engines."""
    root = tmp_path_factory.mktemp("runs")
    folders = {(one, two): root / f"{one}_{two}" for one in ENGINES for two in ENGINES}
    for engines, folder in folders.items():
        _train(folder, *engines)
    return folders


def _checkpoint(folder: Path, name: str = "model_0000005.pth") -> dict:
    return torch.load(folder / "run/train" / name, weights_only=True)


def test_both_engines_write_the_same_files_with_the_same_names(runs: dict[tuple[str, str], Path]) -> None:
    own, other = runs["own", "own"], runs["detectron2", "detectron2"]
    names = [sorted(p.name for p in (folder / "run/train").glob("*.pth")) for folder in (own, other)]
    assert names[0] == names[1] == ["model_0000002.pth", "model_0000005.pth", "model_initial.pth"]
    mine, theirs = _checkpoint(own), _checkpoint(other)
    assert set(mine) == set(theirs)
    for part in ("model", "model_ema"):
        assert {n: t.shape for n, t in mine[part].items()} == {n: t.shape for n, t in theirs[part].items()}
    assert (mine["iteration"], mine["categories"], mine["settings"].replace(str(own), "")) == (
        theirs["iteration"],
        theirs["categories"],
        theirs["settings"].replace(str(other), ""),
    )


def test_both_engines_write_checkpoints_within_a_round_where_they_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunCheckpoints, "prune", lambda *arguments: None)
    for engine in ENGINES:
        _train(tmp_path / engine, engine, CHECKPOINT_PERIOD=2)
        written = sorted(path.name for path in (tmp_path / engine / "run/train").glob("model_0*.pth"))
        assert written == ["model_0000001.pth", "model_0000002.pth"], engine


@pytest.mark.parametrize(
    "engines", [("own", "detectron2"), ("detectron2", "own"), ("detectron2", "detectron2")]
)
def test_a_run_ends_with_the_same_weights_whichever_engine_trained_which_round(
    engines: tuple[str, str], runs: dict[tuple[str, str], Path]
) -> None:
    expected, found = _checkpoint(runs["own", "own"]), _checkpoint(runs[engines])
    for part in ("model", "model_ema"):
        for name, tensor in expected[part].items():
            torch.testing.assert_close(found[part][name], tensor, rtol=0, atol=1e-6, msg=f"{part} {name}")
    assert found["scheduler"]["last_epoch"] == expected["scheduler"]["last_epoch"] == 6


def test_two_processes_of_either_engine_end_with_the_same_weights(tmp_path: Path, python: str) -> None:
    environment = os.environ | {"MRCA_PYTHON": python, "PYTHON_EXEC": python, "OMP_NUM_THREADS": "1"}
    for engine in ENGINES:
        (tmp_path / engine).mkdir()
        config = write_config(tmp_path / engine)
        launch = ["bash", REPOSITORY / "launch.sh", "--config", config, "--num-gpus", "2", "--engine", engine]
        subprocess.run(launch, env=environment, check=True)
    expected, found = (_checkpoint(tmp_path / engine, "model_0000002.pth") for engine in ENGINES)
    for part in ("model", "model_ema"):
        for name, tensor in expected[part].items():
            torch.testing.assert_close(found[part][name], tensor, rtol=0, atol=1e-6, msg=f"{part} {name}")


def test_feedback_and_detectron2_s_scores_agree(runs: dict[tuple[str, str], Path]) -> None:
    folder = runs["detectron2", "detectron2"]
    report = json.loads((folder / "run/train/inference/small_val/metrics.json").read_text())
    for ours, theirs in (("box", "bbox"), ("mask", "segm")):
        scores = {name: value for name, value in report["detectron2"][theirs].items() if name in report[ours]}
        assert set(scores) == set(report[ours])
        for name, value in report[ours].items():
            assert scores[name] == pytest.approx(-100.0 if value is None else value, abs=1e-6)
    feedback = read_feedback(str(folder / "run/feedback.json"))
    assert (feedback.round, feedback.iteration) == (1, 6)
    assert feedback.mask_ap == [entry["mask_ap"] for entry in report["classes"]]
    own = read_feedback(str(runs["own", "own"] / "run/feedback.json"))
    assert feedback.drift == pytest.approx(own.drift, rel=1e-3)


def test_metrics_of_both_engines_stand_in_one_file(runs: dict[tuple[str, str], Path]) -> None:
    for engines, folder in runs.items():
        lines = [json.loads(line) for line in (folder / "run/train/metrics.json").read_text().splitlines()]
        assert len(lines) == 6, engines
        assert all(min(line[k] for k in ("total_loss", "loss_mask", "data_time")) > 0 for line in lines)


def test_evaluation_alone_prints_the_scores(
    runs: dict[tuple[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs["own", "own"] / "config.yaml"
    printed, reports = [], []
    for engine in ENGINES:
        train_net.main(["--config", str(config), "--eval-only", "--engine", engine])
        printed.append(
            [line for line in capsys.readouterr().out.splitlines() if line[:4] in ("box ", "mask")]
        )
        reports.append(json.loads((config.parent / "run/train/inference/small_val/metrics.json").read_text()))
    assert len(printed[0]) == 2 and printed[0] == printed[1][-2:]
    assert reports[1].pop("detectron2") and reports[0] == reports[1]
    assert any(of_class["taken_for"] for of_class in reports[0]["classes"])


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("SOLVER.ACCUMULATION_STEPS", "2", "no such thing"),
        ("INPUT.ACTIVE_SELECT", "True", "no such thing"),
        ("SOLVER.AMP.ENABLED", "True", "needs a GPU"),
        ("OUTPUT_DIR", "memory://run", "folders of this machine"),
    ],
)
def test_what_detectron2_s_trainer_cannot_do_is_said(key: str, value: str, why: str, tmp_path: Path) -> None:
    cfg = load_config(str(write_config(tmp_path)), [key, value])
    with pytest.raises(UserError, match=f"{key}: Detectron2.* {why}"):
        _check(cfg, cfg.OUTPUT_DIR, ALONE)


def test_a_loss_that_is_not_finite_ends_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR.*the last checkpoint is intact"):
        _train(tmp_path / "run", "detectron2", BASE_LR=1e30, CLIP_GRADIENTS={"ENABLED": False}, MODEL_EMA=0)
