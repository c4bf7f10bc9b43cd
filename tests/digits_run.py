"""A run folder without a training: the embedded segmenter as its last checkpoint, and scenes for it to look at."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detectron2_ext.engine.checkpoints import RunCheckpoints
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling import build_detector, load_weights
from exchange import files
from exchange.config import REPOSITORY, load_config
from tools.digits import samples, scenes

CONFIG = str(REPOSITORY / "configs/digits/MRCA_digits.yaml")
CATEGORIES = [{"id": number, "name": samples.category_name(number)} for number in range(1, 31)]


def write_run(run: Path, *overrides: str) -> str:
    """The averaged weights are the embedded segmenter's, the others zero; the optimiser has made a step. Returns the
    checkpoint's path."""
    counts = run / "counts.json"  # gone by the time that the checkpoint is used
    files.write_json(str(counts), [{"id": category["id"], "image_count": 1} for category in CATEGORIES])
    named = ["OUTPUT_DIR", str(run), "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", str(counts)]
    cfg = load_config(CONFIG, [*named, *overrides])
    model = build_detector(cfg)
    counts.unlink()
    load_weights(model, str(REPOSITORY / cfg.MODEL.WEIGHTS))
    state = TrainingState.start(model, cfg, CATEGORIES)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.data.zero_()
    state.optimizer.step()
    return RunCheckpoints(str(run / "train"), 100, 1).save(state)


def write_scenes(folder: Path, num: int) -> list[scenes.Scene]:
    """``num`` images and the annotation file ``scenes.json`` of them, in LVIS format."""
    rng = np.random.default_rng(0)
    photographs, digits = scenes.photographs("val"), samples.split()["val"]
    composed = [scenes.compose([1 + 7 * n % 30], digits, photographs, rng) for n in range(num)]
    names = [f"scene {n}.png" for n in range(num)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in zip(names, composed, strict=True):
        Image.fromarray(scene.image).save(folder / name)
    record = scenes.annotation_file(composed, names, "val", composed)
    files.write_json(str(folder / "scenes.json"), record)
    return composed
