"""A run folder with two generated rounds, small models and a configuration for stage 2; processes to be killed."""

import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import yaml

from exchange import files
from exchange.layout import RunLayout
from tests.diSegmenter.conftest import CATEGORIES, generate
from tests.generator.conftest import saved_sd3, world

__all__ = ["saved_sd3", "world"]  # the small world of stage 1, for its tests here


@pytest.fixture(scope="session")
def preloaded() -> ForkServerContext:
    """Starts processes that have all imports behind them, which are most of a stage's start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.faults.processes",
            "tests.generator.tiny_pipelines",
            "diSegmenter.segment_round",
            "diSegmenter.foreground",
            "diSegmenter.clip_score",
        ]
    )
    return context


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from tests.diSegmenter.small_models import save_clip, save_foreground

    folder = tmp_path_factory.mktemp("models")
    return {
        "FOREGROUND_MODEL": save_foreground(folder / "foreground"),
        "CLIP_MODEL": save_clip(folder / "clip"),
    }


@pytest.fixture
def config(tmp_path: Path, models: dict[str, str]) -> str:
    """Settings of a run with two rounds in ``tmp_path / "run"``; one image at a time, so that it takes a while."""
    categories = str(tmp_path / "train.json")
    files.write_json(categories, {"images": [], "annotations": [], "categories": CATEGORIES})
    content = {
        "OUTPUT_DIR": str(tmp_path / "run"),
        "DATASETS": {"TRAIN": ["discs"], "CUSTOM": [["discs", categories, str(tmp_path)]]},
        "SOLVER": {"MAX_ITER": 20, "ROUND_ITERS": 10},
        "FEEDBACK": {"TIMEOUT": 0.0},
        "SEGMENTER": {
            **models,
            "TRUST_REMOTE_CODE": True,
            "INPUT_SIZE": 32,
            "CLIP_THRESHOLD": 10.0,
            "BATCH_SIZE": 1,
            "WORKERS": 2,
        },
    }
    path = tmp_path / "discs.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    layout = RunLayout(str(tmp_path / "run"))
    for round_ in (0, 1):
        generate(layout, round_, 24)
    return layout
