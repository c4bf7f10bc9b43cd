"""The choice of the engine where there is none to choose from."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectron2_ext import train_net
from detectron2_ext.engine import engines
from exchange.errors import UserError
from tests.detectron2_ext.engine.small_run import write_config


def test_detectron2_s_engine_says_what_to_install_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed.*requirements-detectron2\.txt"):
        train_net.main(["--config", str(write_config(tmp_path)), "--engine", "detectron2"])
    assert not (tmp_path / "run").exists()
