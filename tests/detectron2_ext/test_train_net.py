"""The choice of the engine, and what it is told."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from detectron2_ext import modeling, train_net
from detectron2_ext.engine import loop
from detectron2_ext.engine.round import Engine
from detectron2_ext.engine.state import TrainingState
from exchange.errors import UserError
from tests.detectron2_ext.engine.small_run import write_config
from tests.detectron2_ext.engine.tiny import ALONE, TinyNet, tiny_config


def test_detectron2_s_engine_says_what_to_install_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_net, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed.*requirements-detectron2\.txt"):
        train_net.main(["--config", str(write_config(tmp_path)), "--engine", "detectron2"])
    assert not (tmp_path / "run").exists()


def test_evaluation_alone_takes_the_average_where_the_weights_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling, "build_detector", lambda cfg: TinyNet())
    monkeypatch.setattr(modeling, "load_weights", load := Mock())
    cfg = tiny_config("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", "/weights.pth")
    train_net.evaluate_only(cfg, ALONE, Engine(Mock(), Mock(return_value=None)), given=True)
    assert load.call_args.args[1:] == ("/weights.pth",) and load.call_args.kwargs == {"use_ema": True}


def test_seed_and_periods_of_the_settings_reach_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, object] = {}
    monkeypatch.setattr(loop, "train", lambda *arguments, **options: told.update(options))
    cfg = tiny_config("SEED", "7", "SOLVER.CHECKPOINT_PERIOD", "11", "SOLVER.LOG_PERIOD", "13")
    options = {"end": 3, "checkpoints": None, "folder": str(tmp_path), "title": "round 0", "ranks": ALONE}
    loop.train_round(cfg, TrainingState.start(TinyNet(), cfg), [], 3, **options)
    assert (told["seed"], told["checkpoint_period"], told["log_period"]) == (7, 11, 13)
