"""Stage 3 killed while it writes: later calls end in the checkpoints and the feedback of an undisturbed run."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from diSegmenter.pool.add import import_round
from diSegmenter.pool.foreign import ForeignInstance
from exchange import files
from exchange.annotations import read_annotations
from exchange.layout import RunLayout
from tests.detectron2_ext.engine.small_run import write_config
from tests.detectron2_ext.engine.tiny import assert_equal_weights
from tests.faults.kills import KILLS, kill, kill_repeatedly
from tests.faults.processes import train

CLOCK = ("time", "data_time", "images_per_second", "eta_seconds", "memory_mib")


def fill_pool(layout: RunLayout, annotation_file: Path) -> None:
    """A pool for two rounds: noise, two cut-outs of each category a round."""
    categories = read_annotations(str(annotation_file)).categories
    noise = np.random.default_rng(0).integers(0, 255, (2, 6, 20, 24, 4), dtype=np.uint8)
    noise[..., 3] = 255
    for cutouts in noise:
        foreign = [
            ForeignInstance(f"noise {i}", categories[i % 3]["id"], partial(np.copy, cutout))
            for i, cutout in enumerate(cutouts)
        ]
        import_round(layout, foreign, categories, "noise")


@pytest.fixture
def run(tmp_path) -> tuple[RunLayout, list[str]]:
    """A run of two rounds that pastes from its pool, and the options of its calls."""
    config = write_config(tmp_path, MAX_ITER=8, ROUND_ITERS=4, CHECKPOINT_PERIOD=1, KEEP_CHECKPOINTS=8)
    layout = RunLayout(str(tmp_path / "run"))
    fill_pool(layout, tmp_path / "small_train/annotations.json")
    settings = {"INPUT.USE_COPY_METHOD": "syn_copy", "INPUT.INST_POOL_FEED": True, "FEEDBACK.FROM_ROUND": 1}
    overrides = [text for setting in settings.items() for text in map(str, setting)]
    return layout, ["--config", str(config), *overrides]


def written(layout: RunLayout) -> list[str]:
    """What stage 3 writes, below the run folder, but for TensorBoard and what a killed writer left."""
    root = Path(layout.root)
    names = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    kept = [name for name in names if name.startswith(("train/", "feedback")) and not name.endswith(".tmp")]
    return [name for name in kept if not name.startswith("train/tensorboard/")]


def outputs(layout: RunLayout) -> dict[str, bytes]:
    """Checkpoints, predictions, metrics and feedback, without clock times."""
    found = {name: files.read_bytes(files.join(layout.root, name)) for name in written(layout)}
    for name in found:
        if name == "train/metrics.json" or name.startswith("feedback"):
            lines = map(json.loads, found[name].splitlines())
            timeless = [{key: line[key] for key in line if key not in CLOCK} for line in lines]
            found[name] = json.dumps(timeless).encode()
    return found


def finish(layout: RunLayout, options: list[str]) -> None:
    while not files.exists(layout.feedback_history(1)):
        train(options)


@pytest.mark.bits
def test_killed_twenty_times_it_ends_in_the_same_checkpoints_and_feedback(run, python, tmp_path):
    layout, options = run
    before = shutil.copytree(layout.root, tmp_path / "before")
    finish(layout, options)
    whole = outputs(layout)
    assert {"feedback.json", "feedback/rd01.json", "train/model_0000007.pth"} <= set(whole)
    shutil.rmtree(layout.root)
    shutil.move(before, layout.root)

    kills = sum(kill_repeatedly(python, "train", options, furthest=8) for _ in ("round 0", "round 1"))
    assert kills >= KILLS
    finish(layout, options)
    assert outputs(layout) == whole
    assert not list(Path(layout.root).rglob("*.tmp"))  # a later start removed what killed ones left


@pytest.mark.bits
def test_a_training_without_rounds_goes_on_after_a_kill_as_if_there_had_been_none(python, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, rounds=False, MAX_ITER=8, CHECKPOINT_PERIOD=3)
    whole, killed = (["--config", str(tmp_path / name / "config.yaml")] for name in ("whole", "killed"))
    kill(python, "train", [*killed, "DATALOADER.NUM_WORKERS", "1"], place=9)
    done = [json.loads(line) for line in (tmp_path / "killed/run/train/metrics.json").open()]
    assert 3 <= done[-1]["iteration"] < 8
    train(killed)
    train([*whole, "TEST.EVAL_PERIOD", "5"])  # which changes nothing
    states = [
        torch.load(tmp_path / name / "run/train/model_0000007.pth", weights_only=True)
        for name in ("whole", "killed")
    ]
    for part in ("model", "model_ema"):
        assert_equal_weights(states[0][part], states[1][part])
    for one, other in zip(*(s["optimizer"]["state"].values() for s in states), strict=True):
        assert_equal_weights(one, other)
