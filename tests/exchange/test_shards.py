import argparse

import pytest

from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.shards import Shard, add_shard_arguments, choose_rounds, choose_shard


def parse(*options):
    parser = argparse.ArgumentParser()
    add_shard_arguments(parser)
    return parser.parse_args(options)


def test_without_options_everything_is_worked_on_or_torchruns_share_of_it(monkeypatch):
    assert choose_shard(parse()) == (Shard(0, 1), 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert choose_shard(parse()) == (Shard(5, 8), 1)
    assert choose_shard(parse("--div", "-1")) == (Shard(0, 1), 1)
    assert choose_shard(parse("--div", "2", "--gpu", "3")) == (Shard(2, 3), 3)


def test_rounds_go_to_the_end_of_the_schedule_and_start_within_it():
    options = ["SOLVER.MAX_ITER", "35", "SOLVER.ROUND_ITERS", "10"]
    cfg = load_config(str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), options)
    chosen = [parse(), parse("--st_rd", "1", "--round", "2"), parse("--st_rd", "3", "--round", "9")]
    assert [list(choose_rounds(args, cfg)) for args in chosen] == [[0, 1, 2, 3], [1, 2], [3]]
    with pytest.raises(UserError, match="--st_rd 4"):
        choose_rounds(parse("--st_rd", "4"), cfg)
