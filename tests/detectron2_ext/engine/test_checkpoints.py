"""What is a checkpoint of a run, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detectron2_ext.engine.checkpoints import read_checkpoint
from detectron2_ext.engine.state import TrainingState
from exchange.errors import UserError
from tests.detectron2_ext.engine.tiny import TinyNet, tiny_config


@pytest.mark.parametrize("part", ["", "model", "optimizer", "scheduler", "scaler", "iteration"])
def test_a_file_without_a_part_of_what_a_training_goes_on_from_is_no_checkpoint(
    part: str, tmp_path: Path
) -> None:
    content = TrainingState.start(TinyNet(), tiny_config()).state_dict()
    content.pop(part, None)
    torch.save(content, tmp_path / "x.pth")
    if part:
        with pytest.raises(UserError, match=rf"x\.pth is no checkpoint of a run: it has no {part}$"):
            read_checkpoint(str(tmp_path / "x.pth"))
    else:
        assert read_checkpoint(str(tmp_path / "x.pth")).keys() == content.keys()
