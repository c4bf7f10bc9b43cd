"""Runs with a gradient selection: resumption, tables, feedback, what a later round leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine import checkpoints as checkpoints_module
from detectron2_ext.engine import round as engine_round
from exchange import files
from exchange.config import REPOSITORY
from exchange.cutouts import encode_cutout
from exchange.decisions import Decision, read_decisions, write_decisions
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import write_index
from tests.detectron2_ext.engine.selected import SELECTING
from tests.detectron2_ext.engine.small_run import call, write_config, write_pool
from tests.detectron2_ext.engine.tiny import assert_equal_weights
from tests.digits_run import write_scenes
from tests.diSegmenter.conftest import pool_instance


def write_selecting(folder: Path, **solver: object) -> tuple[Path, RunLayout]:
    """A run of two rounds that pastes one or two instances into each image and accepts half; its pool is there."""
    folder.mkdir(exist_ok=True)
    config, layout = write_config(folder, **solver), RunLayout(str(folder / "run"))
    settings = yaml.safe_load(config.read_text())
    for key, value in (SELECTING | {"MODEL.ACTIVE_ONCE_MODE": "only_paste_dynamic_0.5"}).items():
        group, name = key.split(".")
        settings[group][name] = value
    settings["FEEDBACK"] = {"STALENESS": 0, "TIMEOUT": 0.0}
    config.write_text(yaml.safe_dump(settings))
    for round_ in range(2):
        write_pool(layout, round_)
    return config, layout


def test_decisions_are_written_once_each_and_the_first_process_forgets_those_beyond_the_checkpoint(
    tmp_path: Path,
) -> None:
    layout, decision = RunLayout(str(tmp_path)), Decision(1, 0, "a.png", 3, 0.5, 0.0, True)
    state = Mock(iteration=3, cache=Mock(decisions=[decision]))
    write_decisions(layout, 0, 9, [decision])
    for rank, kept in ((1, [9]), (0, [])):
        ranks = Ranks(rank, 2, torch.device("cpu"))
        checkpoints = checkpoints_module.DecisionsFirst(Mock(), layout, 0, state, ranks)
        assert list(layout.decision_parts(0)) == kept
    for state.iteration in (6, 8):
        checkpoints.save(state)
    assert list(layout.decision_parts(0)) == [6]


class Killed(Exception):
    pass


@pytest.mark.bits
def test_a_killed_and_resumed_run_decides_and_learns_as_the_uninterrupted_one_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, layout = write_selecting(tmp_path / "whole", MAX_ITER=10, ROUND_ITERS=10, CHECKPOINT_PERIOD=2)
    call(whole)
    killed, other = write_selecting(tmp_path / "killed", MAX_ITER=10, ROUND_ITERS=10, CHECKPOINT_PERIOD=2)
    save = checkpoints_module.RunCheckpoints.save

    def dies(self: Any, state: Any) -> str:
        if state.iteration == 6:  # its decisions are written, its checkpoint is not
            raise Killed
        return save(self, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints_module.RunCheckpoints, "save", dies)
        call(killed)
    assert max(other.decision_parts(0)) == 6
    torch.manual_seed(77)
    call(killed, "SOLVER.CHECKPOINT_PERIOD", "5")  # so that no part ends where one was left
    states = [torch.load(f"{of.train_dir}/model_0000009.pth", weights_only=True) for of in (layout, other)]
    for part in ("model", "model_ema"):
        assert_equal_weights(states[0][part], states[1][part])
    one, two = (state["selection"] for state in states)
    assert one["gradient"].ndim == 1 and one["updates"] == two["updates"] == 10
    assert torch.equal(one["gradient"], two["gradient"]) and torch.equal(one["scores"], two["scores"])
    tables = [read_decisions(of, [0]).to_pylist() for of in (layout, other)]
    assert tables[0] == tables[1]
    assert {row["iteration"] for row in tables[0]} == set(range(10))
    assert {row["accepted"] for row in tables[0]} == {True, False}
    assert {row["category_id"] for row in tables[0]} == {2, 5, 9}


def test_a_round_leaves_out_what_the_rounds_before_refused_whenever_they_pasted_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, layout = write_selecting(tmp_path, MAX_ITER=3, ROUND_ITERS=1)
    write_pool(layout, 2)
    pools, build = [], engine_round.build_pool
    monkeypatch.setattr(engine_round, "build_pool", lambda *of: pools.append(build(*of)) or pools[-1])
    monkeypatch.setattr(engine_round.TrainingRun, "_evaluate", lambda run, round_: None)
    call(config, "FEEDBACK.DROP_REFUSED", "2")
    # What the first round decided, as if it had been longer. A later one's would not count.
    names = [layout.instance_name(0, category, 0) for category in (2, 5, 9)]
    rows = [
        Decision(n, 0, name, 2, 0.0, 0.5, accepted)
        for name, accepted in zip(names, (False, True, False), strict=True)
        for n in range(1 if name == names[2] else 2)
    ]
    for path in layout.decision_parts(0).values():
        Path(path).unlink()
    write_decisions(layout, 0, 1, rows)
    write_decisions(layout, 1, 9, [Decision(1, 0, names[2], 9, 0.0, 0.5, False)] * 9)
    Path(layout.feedback_history(0)).parent.mkdir(exist_ok=True)
    monkeypatch.setattr(engine_round, "read_feedback", lambda path: None)
    for round_ in (0, 1):
        Path(layout.feedback_history(round_)).write_text("{}")
        call(config, "FEEDBACK.DROP_REFUSED", "2")
        assert list(layout.decision_parts(round_ + 1)) == [round_ + 2]
        # In the place of its own
        write_decisions(layout, 1, 2, [Decision(1, 0, names[2], 9, 0.0, 0.5, False)])
    pasted = [{pool.instance(i) for i in range(len(pool))} for pool in pools]
    second, third = ({layout.instance_name(r, category, 0) for category in (2, 5, 9)} for r in (1, 2))
    assert pasted == [set(names), {*names[1:], *second}, {names[1], *second, *third}]


def test_the_digits_configuration_takes_a_few_steps_and_tells_what_it_decided(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 8)
    layout = RunLayout(str(tmp_path / "run"))
    square = [0, 0, 24, 24]
    pixels, alpha = np.full((24, 24, 3), 200, np.uint8), np.full((24, 24), 255, np.uint8)
    instances = [
        pool_instance(0, category, 0, width=24, height=24, bbox=square, area=576)
        for category in (1, 8, 15)  # which the first scenes show
    ]
    for instance in instances:
        files.write_bytes(layout.cutout(instance.file), encode_cutout(pixels, alpha, square))
    write_index(layout, 0, instances)
    files.write_bytes(layout.annotations_done(0), b"")
    custom = f"[[scenes, {tmp_path}/scenes/scenes.json, {tmp_path}/scenes]]"
    call(
        REPOSITORY / "configs/digits/BSGAL_digits.yaml",
        *("DATASETS.CUSTOM", custom, "DATASETS.TRAIN", "[scenes]", "DATASETS.TEST", "[scenes]"),
        *("OUTPUT_DIR", layout.root, "SOLVER.MAX_ITER", "3", "SOLVER.ROUND_ITERS", "3"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "FEEDBACK.TIMEOUT", "0.0"),
    )
    table = read_decisions(layout, [0]).to_pylist()
    assert {row["iteration"] for row in table} == {0, 1, 2}
    assert {(row["category_id"], row["instance"]) for row in table} == {
        (instance.category_id, instance.file) for instance in instances
    }
    assert all(-1 <= row["score"] <= 1 for row in table)
    assert all(row["accepted"] == (row["score"] >= row["threshold"]) for row in table)


def test_to_leave_out_what_no_selection_refuses_is_an_error(tmp_path: Path) -> None:
    config, _ = write_selecting(tmp_path)
    with pytest.raises(UserError, match="FEEDBACK.DROP_REFUSED leaves out .* set INPUT.ACTIVE_SELECT True"):
        call(config, "FEEDBACK.DROP_REFUSED", "1", "INPUT.ACTIVE_SELECT", "False")
