"""Which part of the images a process of the first two stages works on, and in which rounds: their common options."""

import argparse
import os
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from exchange.errors import UserError
from exchange.run import num_rounds


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` (from 0) of ``count``."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --gpu, --div, --num_div, --st_rd and --round to a command line."""
    parser.add_argument("--gpu", type=int, help="number of the GPU (default: 0, or torchrun's local rank)")
    parser.add_argument(
        "--div",
        type=int,
        help="work on this shard of the images only, from 0; -1: on all (default: torchrun's rank, or -1)",
    )
    parser.add_argument("--num_div", type=int, default=3, help="number of shards, where --div is given (3)")
    parser.add_argument("--st_rd", type=int, default=0, help="first round (0)")
    parser.add_argument("--round", type=int, help="number of rounds (default: to the end of the schedule)")


def choose_shard(args: argparse.Namespace) -> tuple[Shard, int]:
    """Shard and number of the GPU, those of torchrun or accelerate where the options are not given.

    Raises UserError for a shard that there is not.
    """
    gpu = int(os.environ.get("LOCAL_RANK", "0")) if args.gpu is None else args.gpu
    if args.div is None:
        return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))), gpu
    if args.div == -1:
        return Shard(), gpu
    if not 0 <= args.div < args.num_div:
        raise UserError(
            f"--div {args.div} of --num_div {args.num_div}: shards count from 0 to {args.num_div - 1}, and "
            "-1 stands for everything"
        )
    return Shard(args.div, args.num_div), gpu


def choose_rounds(args: argparse.Namespace, cfg: CfgNode) -> range:
    """--round rounds from --st_rd on, as far as the schedule goes; UserError where it has no such round."""
    in_schedule = num_rounds(cfg)
    if not 0 <= args.st_rd < in_schedule:
        raise UserError(
            f"--st_rd {args.st_rd}: the schedule has the rounds 0 to {in_schedule - 1} (SOLVER.MAX_ITER / "
            "SOLVER.ROUND_ITERS)"
        )
    return range(args.st_rd, in_schedule if args.round is None else min(args.st_rd + args.round, in_schedule))
