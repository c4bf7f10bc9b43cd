"""Which part of the images a process of the first two stages works on."""

import os
from dataclasses import dataclass

from exchange.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` (from 0) of ``count``."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"


def choose_shard(index: int | None, count: int, index_option: str, count_option: str) -> Shard:
    """The shard that a command line asks for: everything for -1, torchrun's or accelerate's rank for None.

    Raises UserError, which names the options, for a shard that there is not.
    """
    if index is None:
        return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if index == -1:
        return Shard()
    if not 0 <= index < count:
        raise UserError(
            f"{index_option} {index} of {count_option} {count}: shards count from 0 to {count - 1}, and -1 stands for "
            "everything"
        )
    return Shard(index, count)


def choose_gpu(gpu: int | None) -> int:
    """The number of the GPU: that of ``--gpu``, or else torchrun's local rank."""
    return int(os.environ.get("LOCAL_RANK", "0")) if gpu is None else gpu
