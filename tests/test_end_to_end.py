"""Two rounds of all three stages, as processes of their own, with the embedded models and settings for seconds."""

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from detectron2_ext import train_net
from detectron2_ext.data.loader import build_dataset, build_test_mapper
from detectron2_ext.modeling import build_model
from detectron2_ext.modeling.builder import load_feedback_network
from diSegmenter import segmentAndFilter
from exchange import files
from exchange.annotations import read_annotations
from exchange.config import load_config
from exchange.errors import UserError
from exchange.feedback import read_feedback
from exchange.layout import RunLayout
from exchange.manifest import is_complete, read_round
from exchange.pool_index import PoolIndex
from generator import generate
from tools import run_status as status
from tools.build_lvis_digits import build
from tools.digits import scenes

REPOSITORY = Path(__file__).resolve().parent.parent
SETTINGS = {
    "_BASE_": str(REPOSITORY / "configs/digits/MRCA_digits.yaml"),
    "DATASETS": {"TRAIN": ["train"], "TEST": ["val"]},
    # Steep, and the average close behind, so that the networks of the rounds can be told apart.
    "SOLVER": {
        "MAX_ITER": 3,
        "ROUND_ITERS": 2,
        "IMS_PER_BATCH": 6,
        "BASE_LR": 0.001,
        "WARMUP_ITERS": 0,
        "MODEL_EMA": 0.5,
    },
    "GENERATOR": {"STEPS": 6, "PER_CLASS": 1},
    "SEGMENTER": {"CLIP_THRESHOLD": -100.0},
    "FEEDBACK": {"FROM_ROUND": 1},
}
# Stands for the interpreter of stage 3, and writes down what each training image got.
WATCH = """
import dataclasses, json, runpy, sys
from detectron2_ext.data.mapper import TrainMapper
mapped = TrainMapper.__getitem__
def watched(self, item):
    seen = mapped(self, item)
    kept = {{name: seen[name] for name in ("stream_index", "height", "width")}}
    pasted = [dataclasses.asdict(info) for info in seen["paste_info"]]
    with open({log!r}, "a") as log:
        log.write(json.dumps(kept | {{"pasted": pasted}}) + "\\n")
    return seen
TrainMapper.__getitem__ = watched
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def first_images(path: Path, count: int) -> None:
    """Shortens an annotation file to its first images."""
    content = json.loads(path.read_text())
    content["images"] = content["images"][:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(content))


def run_rounds(python: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [python, "tools/run_rounds.py", "--config", str(folder / "x.yaml"), *arguments]
    environment = os.environ | {"DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("end_to_end")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "TRAIN_INSTANCES", 300)
        patch.setattr(scenes, "VAL_INSTANCES_PER_CATEGORY", 2)
        build(str(folder / "digits"), seed=0)
    first_images(folder / "digits" / "lvis_digits_val.json", 12)
    custom = [[part, f"digits/lvis_digits_{part}.json", "digits/images"] for part in ("train", "val")]
    settings = SETTINGS | {"OUTPUT_DIR": str(folder / "run")}
    settings["DATASETS"] = settings["DATASETS"] | {"CUSTOM": custom}
    (folder / "x.yaml").write_text(yaml.safe_dump(settings))
    watch = folder / "watch.py"
    watch.write_text(WATCH.format(log=str(folder / "seen.jsonl")))
    trainer = folder / "trainer"
    # The training, and not the pictures of it.
    watched = f'[ "$1" = -m ] && exec "{python}" "{watch}" "$@"'
    trainer.write_text(f'#!/bin/sh\n{watched}\nexec "{python}" "$@"\n')
    trainer.chmod(0o755)
    done = run_rounds(python, folder, "--staleness", "0", "--python-trainer", str(trainer))
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stderr)
    return folder


def test_two_rounds_close_the_loop(finished):
    layout = RunLayout(str(finished / "run"))
    for round_ in range(2):
        assert is_complete(read_round(layout, round_))
        assert files.exists(layout.annotations_done(round_))
        made = [instance for manifest in read_round(layout, round_) for instance in manifest.instances]
        assert len(made) == 30
        assert all(instance.guided == (round_ > 0) for instance in made)
    initial, first, second = (read_feedback(layout.feedback_history(round_)) for round_ in (-1, 0, 1))
    assert [f.iteration for f in (initial, first, second)] == [0, 2, 3]
    assert all(drift is None for drift in initial.drift) and all(drift > 0 for drift in first.drift)
    assert read_feedback(layout.feedback_file) == second
    assert files.sha256(second.checkpoint) == second.checkpoint_sha256


def test_the_second_round_is_allocated_and_guided_by_the_feedback_of_the_first(finished):
    layout = RunLayout(str(finished / "run"))
    feedback = read_feedback(layout.feedback_history(0))
    counts = read_annotations(str(finished / "digits/lvis_digits_train.json")).instance_counts()
    ap = np.array(feedback.mask_ap, dtype=float)
    share = np.array(feedback.drift) * np.where(np.isnan(ap), np.nanmean(ap), ap) / counts
    parts = 30 * share / share.sum()
    images = np.floor(parts).astype(int)
    images[np.argsort(images - parts)[: 30 - images.sum()]] += 1
    (manifest,) = read_round(layout, 1)
    assert [manifest.asked.get(c, 0) for c in feedback.categories] == images.tolist() and images.max() > 1
    pixels = np.stack([np.asarray(Image.open(layout.raw(made.file))) for made in manifest.instances])
    entropies = []
    for source in (0, -1):
        told = read_feedback(layout.feedback_history(source))
        network = load_feedback_network(
            load_config(str(finished / "x.yaml")),
            told.checkpoint,
            sha256=told.checkpoint_sha256,
            use_ema=True,
            device=torch.device("cpu"),
        )
        with torch.no_grad():
            logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).double()
        entropies.append((-logits.softmax(1) * logits.log_softmax(1)).sum(1).numpy())
    written = np.array([made.criterion_after for made in manifest.instances])
    errors = [np.abs(entropy - written).max() for entropy in entropies]
    assert errors[0] < 0.05 < 0.5 < errors[1]  # the pictures on disk are rounded to 8 bits


def size_factors(box_ap):
    """16 at AP 0, 1 at the mean, 1/16 at AP 100, and linear in the logarithm between; 1 without AP."""
    mean = np.mean([value for value in box_ap if value is not None])
    exponents = np.interp([mean if value is None else value for value in box_ap], [0, mean, 100], [1, 0, -1])
    return 16.0**exponents


def test_the_second_round_pastes_objects_of_both_in_sizes_by_the_feedback_of_the_first(finished):
    train = read_annotations(str(finished / "digits/lvis_digits_train.json"))
    areas = train.boxes[:, 2:].prod(axis=1) / train.image_sizes[train.object_images].prod(axis=1)
    sizes = [areas[train.object_classes == index] ** 0.5 for index in range(len(train.categories))]
    mean, deviation = (np.array([of(values) for values in sizes]) for of in (np.mean, np.std))
    told = read_feedback(RunLayout(str(finished / "run")).feedback_history(0))
    images = [json.loads(line) for line in (finished / "seen.jsonl").read_text().splitlines()]
    assert [image["stream_index"] for image in images] == list(range(18))
    for round_, factors in ((0, np.ones(30)), (1, size_factors(told.box_ap))):
        of_round = images[12 * round_ : 12 * (round_ + 1)]
        pasted = [(image, info) for image in of_round for info in image["pasted"]]
        made_in = PoolIndex(RunLayout(str(finished / "run")), range(round_ + 1)).column("round")
        assert {made_in[info["pool_index"]] for _, info in pasted} == set(range(round_ + 1))
        assert len({info["pool_index"] for _, info in pasted}) == len(pasted)  # drawn without replacement
        assert all(1 <= len(image["pasted"]) <= 2 for image in of_round)
        for image, info in pasted:
            (x1, y1, x2, y2), place = info["box"], info["class_index"]
            expected = np.clip(factors[place] * mean[place], 10 / image["height"], 0.5)
            side = ((x2 - x1) * (y2 - y1) / (image["height"] * image["width"])) ** 0.5
            assert abs(side - expected) < 4 * deviation[place], (round_, place)


def test_the_averaged_weights_of_the_last_checkpoint_are_those_that_were_evaluated(finished, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(finished))
    cfg = load_config(str(finished / "x.yaml"))
    checkpoint = read_feedback(RunLayout(cfg.OUTPUT_DIR).feedback_file).checkpoint
    image = build_test_mapper(cfg, build_dataset(cfg, "val"))[0]
    written = json.loads((finished / "run/train/inference/val/lvis_instances_results.json").read_text())
    expected = [entry["score"] for entry in written if entry["image_id"] == image["image_id"]]
    network = build_model(cfg).eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["model_ema"])
    with torch.no_grad():
        found = network([image])[0]["instances"].scores.tolist()
    assert found and found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stage", [generate, segmentAndFilter, train_net])
def test_each_stage_refuses_a_run_folder_of_other_settings(stage, call, finished, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(finished))
    with pytest.raises(UserError, match="belongs to a run with SEED 0, not 5"):
        call(stage, "--config", finished / "x.yaml", "SEED", "5")


def test_the_run_has_its_page_with_what_training_saw_and_the_log_of_each_stage(finished):
    run = finished / "run"
    page = (run / "report.html").read_text()
    # How the images of two rounds were divided; of the guided one eight images and their twins.
    assert page.count("data:image/webp;base64,") == 2 + 8 * 2 and "red zero" in page
    beside = sorted(path.name.removesuffix(".webp") for path in (run / "report/A").glob("*.webp"))
    assert beside[:2] == ["rd00_000", "rd01_000"]
    assert [name[:13] for name in beside[2:]] == ["training_rd00", "training_rd01"]  # what training saw
    logs = {path.name: path.read_text().splitlines() for path in (run / "logs").iterdir()}
    assert set(logs) == {"generate_0of1.log", "segment_0of1.log", "train.log"}
    assert not [line for lines in logs.values() for line in lines if " ERROR " in line]
    assert (finished / "said.txt").read_text().count("[rounds] 1 of 2 rounds are done, about ") == 1
    assert status.look(RunLayout(str(run)), time.time(), 900).state == "finished"
