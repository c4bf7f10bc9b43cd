"""A run folder with generated images, and the small models; what needs no model is tested without torch."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from exchange import files
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, Manifest, write_manifest
from exchange.pool_index import PoolInstance

CATEGORIES = [
    {
        "id": 3,
        "name": "red disc",
        "frequency": "r",
        "image_count": 2,
        "instance_count": 2,
        "synset": "disc.n.01",
    },
    {
        "id": 7,
        "name": "blue_disc",
        "frequency": "f",
        "image_count": 200,
        "instance_count": 300,
        "def": "a disc",
    },
]


def disc_image(
    radius: int, size: tuple[int, int] = (40, 48), ink: tuple[int, int, int] = (150, 20, 20)
) -> np.ndarray:
    """A disc on white: uint8 (H, W, 3)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside = (rows - size[0] // 2) ** 2 + (columns - size[1] // 2) ** 2 <= radius**2
    return np.where(inside[..., None], ink, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def generate(
    layout: RunLayout, round_: int, count: int = 6, shard: int = 0, num_shards: int = 1, complete: bool = True
) -> list[GeneratedInstance]:
    """Writes what stage 1 would write: discs of different size, and the shard's manifest."""
    instances = []
    for number in range(shard, count, num_shards):
        category = CATEGORIES[number % 2]["id"]
        name = layout.instance_name(round_, category, number)
        files.write_bytes(layout.raw(name), png(disc_image(5 + number % 12)))
        template, seed = "a photo of {}", 1000 + number
        instances.append(
            GeneratedInstance(name, category, number, seed, template, "a photo", False, model="tiny")
        )
    asked = {
        category["id"]: sum(i.category_id == category["id"] for i in instances) for category in CATEGORIES
    }
    write_manifest(layout, Manifest(round_, shard, num_shards, complete, asked, instances, 1.0))
    return instances


def pool_instance(round_: int, category_id: int, number: int, **values: Any) -> PoolInstance:
    """A kept instance as stage 2 writes it, with ``values`` in place of some of its fields."""
    name = RunLayout.instance_name(round_, category_id, number)
    fields = {
        "file": name,
        "round": round_,
        "category_id": category_id,
        "width": 48,
        "height": 40,
        "bbox": [3, 4, 10, 11],
        "area": 90,
        "segmentation": [[3, 4, 12, 4, 12, 14]],
        "objects": 1,
        "clip_white": 0.0,
        "clip_black": 30.0,
        "reason": "",
        "seed": number,
        "model": "tiny",
        "prompt": "a photo",
        "cutout": RunLayout.cutout_name(name),
    }
    return PoolInstance(**fields | values)


def write_settings(folder: Path, foreground: str, clip: str, **segmenter: object) -> str:
    """The YAML of a run with two rounds in ``folder / "run"``, of the data set of CATEGORIES."""
    categories = str(folder / "train.json")
    files.write_json(categories, {"images": [], "annotations": [], "categories": CATEGORIES})
    models = {"FOREGROUND_MODEL": foreground, "CLIP_MODEL": clip, "TRUST_REMOTE_CODE": True, "INPUT_SIZE": 32}
    content = {
        "OUTPUT_DIR": str(folder / "run"),
        "DATASETS": {"TRAIN": ["discs"], "CUSTOM": [["discs", categories, str(folder)]]},
        "SOLVER": {"MAX_ITER": 20, "ROUND_ITERS": 10},
        "FEEDBACK": {"TIMEOUT": 0.0},
        "SEGMENTER": models | segmenter,
    }
    path = folder / "discs.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture(scope="session")
def foreground_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.diSegmenter.small_models import save_foreground

    return save_foreground(tmp_path_factory.mktemp("models") / "foreground")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.diSegmenter.small_models import save_clip

    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunLayout(str(tmp_path / "run"))
