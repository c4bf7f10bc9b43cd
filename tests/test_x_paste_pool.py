"""A pool of X-Paste's, brought in by tools/pool.py, trains with the settings of configs/baselines/XPaste_R50.yaml."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detectron2_ext import train_net
from detectron2_ext.engine import round as engine_round
from exchange import files
from exchange.config import REPOSITORY, load_config
from exchange.feedback import read_feedback
from tools import pool as command
from tools.digits import pictures, samples, scenes

PER_FORM = 10  # instances in each of X-Paste's three forms of a path


def write_dataset(folder: Path, part: str, rng: np.random.Generator) -> list[str]:
    """Six scenes of two digits; returns the data set's entry for DATASETS.CUSTOM."""
    digits, backgrounds = samples.split()[part], scenes.photographs(part)
    composed = [scenes.compose([1 + i, 30 - i], digits, backgrounds, rng) for i in range(6)]
    names = [f"{part}_{i}.png" for i in range(6)]
    for scene, name in zip(composed, names, strict=True):
        Image.fromarray(scene.image).save(folder / name)
    path = str(folder / f"{part}.json")
    files.write_json(path, scenes.annotation_file(composed, names, part, counts_of=composed))
    return [part, path, str(folder)]


def write_x_paste_pool(folder: Path, rng: np.random.Generator) -> str:
    """Digits as ``*cut-out``, as ``image|mask`` and as plain RGBA, ten categories each; returns the list's path."""
    listed: dict[str, list[str]] = {}
    drawn = pictures.with_masks(samples.split()["generation"], 3 * PER_FORM, rng)
    for number, (picture, coverage, category) in enumerate(drawn):
        alpha = np.rint(255 * coverage).astype(np.uint8)
        rows, columns = (np.flatnonzero((alpha > 128).any(axis)) for axis in (1, 0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        rgba, name = Image.fromarray(np.dstack([picture, alpha])), f"{number}.png"
        if number < PER_FORM:
            Image.fromarray(np.asarray(rgba)[window]).save(folder / name)
            name = f"*{name}"
        elif number < 2 * PER_FORM:
            Image.fromarray(picture).save(folder / name)
            Image.fromarray(alpha).save(folder / f"mask_{name}")
            name = f"{name}|mask_{name}"
        else:
            rgba.save(folder / name)
        listed.setdefault(str(category - 1), []).append(name)
    path = str(folder / "LVIS_instance_pools.json")
    files.write_json(path, listed)
    return path


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Four iterations of the small digits network, pasting as the baseline does."""
    published = load_config(str(REPOSITORY / "configs/baselines/XPaste_R50.yaml")).INPUT
    pasting = {key: published[key] for key in published if key.startswith("INST_POOL")}
    (tmp_path / "images").mkdir()
    custom = [write_dataset(tmp_path / "images", part, np.random.default_rng(0)) for part in ("train", "val")]
    settings = {
        "_BASE_": str(REPOSITORY / "configs/digits/Base-digits.yaml"),
        "DATASETS": {"TRAIN": ["train"], "TEST": ["val"], "CUSTOM": custom},
        "INPUT": pasting
        | {"USE_COPY_METHOD": published.USE_COPY_METHOD, "INST_POOL_PATH": str(tmp_path / "pool")},
        "SOLVER": {"MAX_ITER": 4, "ROUND_ITERS": 4, "IMS_PER_BATCH": 2},
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    (tmp_path / "x_paste.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / "x_paste.yaml")


def test_an_x_paste_pool_is_imported_and_trained_on(config, tmp_path, monkeypatch, capsys, call):
    (tmp_path / "theirs").mkdir()
    listed = write_x_paste_pool(tmp_path / "theirs", np.random.default_rng(0))
    target, categories = str(tmp_path / "pool"), str(tmp_path / "images/train.json")
    call(command, "import", target, listed, "--from", "xpaste", "--annotations", categories)
    assert f"imported {3 * PER_FORM} instances into {target}, left out 0" in capsys.readouterr().out

    trained_on = []

    def watched(*arguments, **options):
        for batch in build_train_loader(*arguments, **options):
            trained_on.extend(batch)
            yield batch

    build_train_loader = engine_round.build_train_loader
    monkeypatch.setattr(engine_round, "build_train_loader", watched)
    train_net.main(["--config", config])

    assert len(trained_on) == 4 * 2
    pasted = [info for item in trained_on for info in item["paste_info"]]
    assert {info.pool_index // PER_FORM for info in pasted} == {0, 1, 2}  # of each form of a path
    assert all(
        info.class_index == info.pool_index for info in pasted
    )  # one instance a category, in their order
    for item in trained_on:
        truth, classes = item["instances"], {info.class_index for info in item["paste_info"]}
        assert set(truth.gt_classes[truth.instance_source == 1].tolist()) <= classes
    assert sum(int((item["instances"].instance_source == 1).sum()) for item in trained_on) > 10
    feedback = read_feedback(str(tmp_path / "run/feedback.json"))
    assert feedback.iteration == 4 and files.sha256(feedback.checkpoint) == feedback.checkpoint_sha256
