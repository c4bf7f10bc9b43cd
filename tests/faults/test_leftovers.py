"""The next start of a stage removes what killed writers left where it writes."""

from contextlib import suppress
from pathlib import Path

import pytest

from exchange import files
from exchange.errors import UserError
from tests.detectron2_ext.engine.small_run import write_config
from tests.faults.processes import draw, segment_and_filter, train

# Its options, with which it has nothing to work on, and the folders that it writes to.
STAGES = {
    draw: (["--num-rounds", "0"], "pool/raw", "pool/manifests", "pictures", "seconds"),
    segment_and_filter: (
        ["--num-rounds", "0"],
        *("pool", "pool/segmented", "pool/cutouts", "pool/index", "pool/annotations", "pictures", "seconds"),
    ),
    train: (
        ["MODEL.WEIGHTS", "/nowhere.pth"],
        *("train", "train/decisions", "train/inference/small_val", "feedback", "seconds"),
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_start_removes_what_killed_writers_left(stage, tmp_path):
    config = write_config(tmp_path, MAX_ITER=1, ROUND_ITERS=1)
    options, *folders = STAGES[stage]
    beside = f"x.{files._kernel()}-01234567.tmp"
    left = [Path(tmp_path, "run", folder, beside) for folder in ("", *folders)]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with suppress(UserError):
        stage(["--config", str(config), *options])
    assert [path for path in left if path.exists()] == []
