"""A checkpoint as one file: what the command writes and says of it; test_predictor.py reads such files."""

import pytest

from detectron2_ext.modeling.described import read_described
from exchange.errors import UserError
from tests.digits_run import write_run
from tools import export


def test_settings_override_those_of_the_checkpoint_and_the_file_is_named(tmp_path, call, capsys):
    checkpoint, out = write_run(tmp_path / "run"), tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"x\.pth is to be written as safetensors: give a name that ends in"):
        call(export, checkpoint, tmp_path / "x.pth")
    call(export, checkpoint, out, "INPUT.MIN_SIZE_TEST", 96)
    assert capsys.readouterr().out == f"{out}\n"
    assert [read_described(path).cfg.INPUT.MIN_SIZE_TEST for path in (checkpoint, str(out))] == [160, 96]
