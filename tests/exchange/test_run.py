"""The settings of a run: what must stay, what may change, how many rounds they make."""

from pathlib import Path

import pytest

from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.run import num_rounds, open_run

CONFIG = str(REPOSITORY / "configs/digits/MRCA_digits.yaml")


def settings(root: Path, *overrides: str):
    return load_config(CONFIG, ["OUTPUT_DIR", str(root), *overrides])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.CHECKPOINT_PERIOD", "7"),
        ("SOLVER.KEEP_CHECKPOINTS", "3"),
        ("SOLVER.LOG_PERIOD", "1"),
        ("MODEL.DEVICE", "cpu"),
        ("DATALOADER.NUM_WORKERS", "2"),
    ],
)
def test_what_changes_no_result_may_change_on_resumption(tmp_path, key, value):
    open_run(settings(tmp_path))
    assert open_run(settings(tmp_path, key, value)).root == str(tmp_path)


def test_another_setting_is_refused_with_both_values(tmp_path):
    open_run(settings(tmp_path))
    with pytest.raises(UserError, match=r"belongs to a run with SOLVER\.BASE_LR 0\.0004, not 0\.001: choose"):
        open_run(settings(tmp_path, "SOLVER.BASE_LR", "0.001"))


@pytest.mark.parametrize(("iterations", "rounds"), [(300, 3), (301, 4), (299, 3), (100, 1), (50, 1)])
def test_the_last_round_may_be_short(tmp_path, iterations, rounds):
    assert num_rounds(settings(tmp_path, "SOLVER.MAX_ITER", str(iterations))) == rounds
