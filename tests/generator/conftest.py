"""A small world for stage 1: a model on disk, a data set of four categories, a configuration.

Only those tests load diffusers that ask for the model.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

CATEGORIES = {1: "aerosol_can", 2: "bat_(animal)", 5: "cow", 9: "dog"}
COUNTS = (1, 2, 5, 20)


@pytest.fixture(scope="session")
def saved_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Stable Diffusion 3 of random weights."""
    from tests.generator.tiny_pipelines import make_pipeline

    folder = tmp_path_factory.mktemp("models") / "sd3"
    make_pipeline("sd3").save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path: Path, saved_sd3: Path) -> SimpleNamespace:
    """``config`` (path of a YAML), ``run`` (folder that it names), ``settings`` (to write another YAML)."""
    from tests.generator.tiny_pipelines import SIZE

    annotations = [
        {"id": 100 * id_ + i, "image_id": 1, "category_id": id_}
        for id_, count in zip(CATEGORIES, COUNTS, strict=True)
        for i in range(count)
    ]
    data = {
        "images": [{"id": 1, "height": 10, "width": 10}],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in CATEGORIES.items()],
    }
    (tmp_path / "train.json").write_text(json.dumps(data))
    settings: dict[str, Any] = {
        "OUTPUT_DIR": str(tmp_path / "run"),
        "DATASETS": {"CUSTOM": [["tiny", str(tmp_path / "train.json"), str(tmp_path)]], "TRAIN": ["tiny"]},
        "SOLVER": {"MAX_ITER": 30, "ROUND_ITERS": 10},
        "FEEDBACK": {"STALENESS": 0, "TIMEOUT": 0.1, "FROM_ROUND": 2},
        "GENERATOR": {
            "MODEL": str(saved_sd3),
            "DTYPE": "float32",
            "IMAGE_SIZE": SIZE,
            "STEPS": 2,
            "PER_CLASS": 3,
            "BATCH_SIZE": 4,
            "TWINS": 0,
        },
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings))
    return SimpleNamespace(config=config, run=tmp_path / "run", settings=settings)
