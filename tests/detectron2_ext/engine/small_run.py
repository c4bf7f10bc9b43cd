"""A run with the real network and real images, made for seconds: coloured rectangles of three categories."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from detectron2_ext import train_net
from exchange import files
from exchange.layout import RunLayout
from exchange.pool_index import write_index
from tests.diSegmenter.conftest import pool_instance

_COLOURS = ((255, 40, 40), (40, 255, 40), (40, 40, 255))
SIDE = 64
LAST_CLASSIFIER = "roi_heads.box_predictor.2.cls_score.weight"


def call(config: Path, *arguments: str) -> None:
    """Stage 3 in this process."""
    train_net.main(["--config", str(config), *arguments])


def write_dataset(folder: Path, num_images: int, seed: int) -> Path:
    """An LVIS file beside its images; returns its path. Category ids are 2, 5 and 9."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for class_index in (image_id % 3, (image_id + 1) % 3):
            width, height = (int(v) for v in rng.integers(16, 30, 2))
            x, y = int(rng.integers(0, SIDE - width)), int(rng.integers(0, SIDE - height))
            pixels[y : y + height, x : x + width] = _COLOURS[class_index]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": (2, 5, 9)[class_index],
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                }
            )
        name = f"{image_id:03}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
        images[-1] |= {"neg_category_ids": [(2, 5, 9)[(image_id + 2) % 3]], "not_exhaustive_category_ids": []}
    categories = [
        {"id": number, "name": name, "frequency": frequency}
        for number, name, frequency in ((2, "red", "r"), (5, "green", "c"), (9, "blue", "f"))
    ]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_config(folder: Path, rounds: bool = True, **solver: object) -> Path:
    """A YAML for two rounds of three iterations, with its data sets, in ``folder``; the run is ``folder/run``.

    Nothing is pasted. ``rounds``: False: for six iterations without rounds.
    """
    custom = []
    for name, num_images, seed in (("small_train", 8, 0), ("small_val", 4, 1)):
        path = folder / name / "annotations.json"
        if not path.exists():
            write_dataset(folder / name, num_images, seed)
        custom.append([name, str(path), str(folder / name)])
    settings = {
        "MODEL": {
            "TIMM": {"BASE_NAME": "test_resnet", "NORM": "BN"},
            "DEVICE": "cpu",
            "FPN": {"OUT_CHANNELS": 32},
            "CENTERNET": {
                "NUM_BOX_CONVS": 1,
                "SOI": [[0, 32], [24, 64], [48, 96], [80, 128], [112, 10000000]],
                "POST_NMS_TOPK_TRAIN": 30,
                "POST_NMS_TOPK_TEST": 20,
            },
            "ROI_HEADS": {"NUM_CLASSES": 3, "BATCH_SIZE_PER_IMAGE": 16},
            "ROI_BOX_HEAD": {"FC_DIM": 32},
            "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 16},
        },
        "DATASETS": {"TRAIN": ["small_train"], "TEST": ["small_val"], "CUSTOM": custom},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {
            "TRAIN_SIZE": SIDE,
            "MIN_SIZE_TEST": SIDE,
            "MAX_SIZE_TEST": SIDE,
            "SCALE_RANGE": [0.8, 1.25],
            "INST_POOL_FEED": rounds,
        },
        "TEST": {"DETECTIONS_PER_IMAGE": 20},
        "SOLVER": {
            "MAX_ITER": 6,
            "ROUND_ITERS": 3,
            "IMS_PER_BATCH": 2,
            "BASE_LR": 0.002,
            "WARMUP_ITERS": 2,
            "MODEL_EMA": 0.5,
            "CHECKPOINT_PERIOD": 2,
            "LOG_PERIOD": 1,
            **solver,
        },
        "OUTPUT_DIR": str(folder / "run"),
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def write_pool(layout: RunLayout, round_: int, extra: tuple[int, ...] = ()) -> None:
    """What stage 2 leaves of a round: a square of each category, and of the ``extra`` ones."""
    instances = []
    colours = (*_COLOURS, *[(255, 255, 40)] * len(extra))
    for category_id, colour in zip((2, 5, 9, *extra), colours, strict=True):
        name = layout.instance_name(round_, category_id, 0)
        buffer = io.BytesIO()
        Image.new("RGBA", (24, 24), (*colour, 255)).save(buffer, "PNG")
        files.write_bytes(layout.cutout(name), buffer.getvalue())
        square = {"width": 24, "height": 24, "bbox": [0, 0, 24, 24], "area": 576}
        instances.append(pool_instance(round_, category_id, 0, **square))
    write_index(layout, round_, instances)
    files.write_bytes(layout.annotations_done(round_), b"")
