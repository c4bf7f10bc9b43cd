import pytest

from exchange.errors import UserError
from exchange.shards import Shard, choose_gpu, choose_shard


def test_without_options_everything_is_worked_on_or_torchruns_share_of_it(monkeypatch):
    options = ("--div", "--num_div")
    assert (choose_shard(None, 3, *options), choose_gpu(None)) == (Shard(0, 1), 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert (choose_shard(None, 3, *options), choose_gpu(None)) == (Shard(5, 8), 1)
    assert choose_shard(-1, 3, *options) == Shard(0, 1)
    assert (choose_shard(2, 3, *options), choose_gpu(3)) == (Shard(2, 3), 3)
    assert (choose_shard(0, 3, *options), choose_gpu(0)) == (Shard(0, 3), 0)
    for index in (3, -2):
        with pytest.raises(
            UserError, match=f"--div {index} of --num_div 3: shards count from 0 to 2, and -1"
        ):
            choose_shard(index, 3, *options)
