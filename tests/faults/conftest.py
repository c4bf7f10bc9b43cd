"""A run folder with two generated rounds, small models and a configuration for stage 2."""

from pathlib import Path

import pytest

from exchange.layout import RunLayout
from tests.diSegmenter.conftest import clip_folder, foreground_folder, generate, write_settings
from tests.generator.conftest import saved_sd3, world

__all__ = ["clip_folder", "foreground_folder", "saved_sd3", "world"]  # of the stages, for their tests here


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
