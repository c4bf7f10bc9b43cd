"""The choice of the engine, and what it is told."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from detectron2_ext import distributed, modeling, train_net
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine import loop
from detectron2_ext.engine.round import Engine
from detectron2_ext.engine.state import TrainingState
from exchange.config import load_config
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.locks import only_one
from tests.detectron2_ext.engine.small_run import write_config
from tests.detectron2_ext.engine.tiny import ALONE, TinyNet, tiny_config


def test_detectron2_s_engine_says_what_to_install_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_net, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed.*requirements-detectron2\.txt"):
        train_net.main(["--config", str(write_config(tmp_path)), "--engine", "detectron2"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_tells_what_it_does(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, silent_up_to = Ranks(rank, 2, torch.device("cpu")), []
    monkeypatch.setattr(distributed, "join_ranks", lambda device: nullcontext(ranks))
    monkeypatch.setattr(
        train_net, "evaluate_only", lambda *_: silent_up_to.append(logging.root.manager.disable)
    )
    try:
        train_net.main(["--config", str(write_config(tmp_path)), "--eval-only"])
    finally:
        logging.disable(logging.NOTSET)
    assert silent_up_to == [logging.INFO if rank else logging.NOTSET]


def test_evaluation_alone_takes_the_average_where_the_weights_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling, "build_detector", lambda cfg: TinyNet())
    monkeypatch.setattr(modeling, "load_weights", load := Mock())
    cfg = load_config(str(write_config(tmp_path)), ["MODEL.WEIGHTS", "/weights.pth"])
    cfg.merge_from_list(["DATASETS.TEST", ["small_val", "small_train"]])
    for given in (True, False):  # there is no checkpoint
        train_net.evaluate_only(cfg, ALONE, Engine(Mock(), validate := Mock(return_value=None)), given)
        assert [call.args[2] for call in validate.call_args_list] == ["small_val", "small_train"]
        assert load.call_args.args[1:] == ("/weights.pth",) and load.call_args.kwargs["use_ema"]
        load.reset_mock()


def test_evaluation_alone_prints_one_table_each_class_on_demand_and_where_the_results_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config, random = write_config(tmp_path), str(tmp_path / "x.pth")
    cfg = load_config(str(config))
    torch.save({"model": modeling.build_detector(cfg).state_dict()}, random)
    unsaid = ["MODEL.ROI_HEADS.NUM_CLASSES", "0", "MODEL.WEIGHTS", random]
    for options in ([], ["--per-class"]):
        train_net.main(["--config", str(config), "--eval-only", *options, *unsaid])
        shown = capsys.readouterr().out
        assert shown.count("\nmask ") == 1 and "mask" not in caplog.text
        assert [name in shown for name in ("  red\n", "  green\n", "  blue\n")] == [bool(options)] * 3
        assert "nothing was found (mask AP 0.00): usually" in shown
        where = shown.rstrip().rpartition("scores and predictions: ")[2]
        assert (Path(where) / "metrics.json").exists() and not (tmp_path / "run/run.yaml").exists()


def test_a_training_that_fails_at_its_start_claims_no_folder_and_one_of_other_classes_can_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config, weights = write_config(tmp_path, MAX_ITER=1), str(tmp_path / "x.pth")
    cfg = load_config(str(config), ["MODEL.ROI_HEADS.NUM_CLASSES", "5"])
    torch.save({"model": modeling.build_detector(cfg).state_dict()}, weights)
    start = ["--config", str(config), "--eval-initial", "MODEL.WEIGHTS", weights]
    with pytest.raises(UserError, match=r"set MODEL\.NEW_CLASSIFIER True"):
        train_net.main(start)
    assert not (tmp_path / "run/run.yaml").exists()
    train_net.main([*start, "MODEL.NEW_CLASSIFIER", "True", "MODEL.ROI_HEADS.NUM_CLASSES", "0"])
    assert (tmp_path / "run/feedback/initial.json").exists()
    assert "NUM_CLASSES: 3\n" in (tmp_path / "run/run.yaml").read_text()
    log = (tmp_path / "run/logs/train.log").read_text()
    assert f"run folder: {tmp_path}/run\n" in log and "nothing was found" not in log


def test_weights_that_say_that_they_are_of_other_classes_are_neither_evaluated_nor_taken_to_start(
    tmp_path: Path,
) -> None:
    config, weights = write_config(tmp_path), str(tmp_path / "x.pth")
    model = modeling.build_detector(load_config(str(config))).state_dict()
    names = enumerate(("red", "blue", "green"))
    torch.save({"model": model, "categories": [{"id": i, "name": name} for i, name in names]}, weights)
    for option in ("--eval-only", "--eval-initial"):
        with pytest.raises(UserError, match=r"other classes \('blue' instead of 'green'\)"):
            train_net.main(["--config", str(config), option, "MODEL.WEIGHTS", weights])


def test_test_sets_of_other_categories_than_the_first_and_none_at_all_are_refused(tmp_path: Path) -> None:
    config, path = str(write_config(tmp_path)), tmp_path / "small_train/annotations.json"
    path.write_text(path.read_text().replace('"red"', '"rot"'))
    for sets, why in (
        ("['small_val', 'small_train']", "categories of .*train.* are not .*val"),
        ("[]", "names no"),
    ):
        with pytest.raises(UserError, match=rf"DATASETS\.TEST.* {why}"):
            train_net.main(
                ["--config", config, "--eval-only", "MODEL.WEIGHTS", "x.pth", "DATASETS.TEST", sets]
            )


def test_seed_and_periods_of_the_settings_reach_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, object] = {}
    monkeypatch.setattr(loop, "train", lambda *arguments, **options: told.update(options))
    cfg = tiny_config("SEED", "7", "SOLVER.CHECKPOINT_PERIOD", "11", "SOLVER.LOG_PERIOD", "13")
    options = {"end": 3, "checkpoints": None, "folder": str(tmp_path), "title": "round 0", "ranks": ALONE}
    loop.train_round(cfg, TrainingState.start(TinyNet(), cfg), [], 3, **options)
    assert (told["seed"], told["checkpoint_period"], told["log_period"]) == (7, 11, 13)


def test_a_second_training_in_the_folder_is_refused_and_leaves_the_first_one_s_log_alone(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, MAX_ITER=1)
    with only_one(RunLayout(str(tmp_path / "run")), "train"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is at 'train' already"):
            train_net.main(["--config", str(config)])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["locks"]
