"""A run folder with two generated rounds, small models and a configuration for stage 2; processes to be killed."""

import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from exchange.layout import RunLayout
from tests.diSegmenter.conftest import clip_folder, foreground_folder, generate, write_settings
from tests.generator.conftest import saved_sd3, world

__all__ = ["clip_folder", "foreground_folder", "saved_sd3", "world"]  # of the stages, for their tests here


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
            "detectron2_ext.engine.round",
            "generator.build",
            "generator.production",
            "diSegmenter.build_similarity",
            "diffusers.guiders",
            "kornia",
            "matplotlib.backends.backend_agg",
            "matplotlib.figure",
            "torch.utils.tensorboard",
        ]
    )
    return context


@pytest.fixture
def config(tmp_path: Path, foreground_folder: str, clip_folder: str) -> str:
    """Settings of a run with two rounds; one image at a time, so that it takes a while."""
    segmenter = {"CLIP_THRESHOLD": 10.0, "BATCH_SIZE": 1, "WORKERS": 2}
    return write_settings(tmp_path, foreground_folder, clip_folder, **segmenter)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    layout = RunLayout(str(tmp_path / "run"))
    for round_ in (0, 1):
        generate(layout, round_, 24)
    return layout
