"""The processes that train together, as ``torchrun`` starts them."""

from __future__ import annotations

import datetime
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from exchange.errors import UserError
from exchange.stopping import Stopped

_T = TypeVar("_T")
# The others wait while the first process scores a validation set or the pool of a round is being made.
_PATIENCE = datetime.timedelta(days=3)
_GRACE_S = 60.0  # a lost machine is told by nobody
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run: ``rank`` of ``world_size``, working on ``device``."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Returns when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def any(self, here: bool) -> bool:
        """Whether it is so in any process; every process asks at the same time. No GPU waits for it."""
        if self.world_size == 1:
            return here
        votes = torch.tensor(int(here))
        dist.all_reduce(votes)
        return bool(votes)

    def gather(self, here: _T) -> list[_T]:
        """What every process has, in the order of their ranks; every process asks at the same time."""
        if self.world_size == 1:
            return [here]
        found: list[_T] = [here] * self.world_size
        dist.all_gather_object(found, here)
        return found

    def total(self, here: Tensor) -> Tensor:
        """The sum over the processes, without gradient."""
        if self.world_size > 1:
            here = here.clone()
            dist.all_reduce(here)
        return here

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the first one's values of ``tensors``."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """``model``, with gradients that are the mean over the processes where there are several."""
        if self.world_size == 1:
            return model
        places = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=places, broadcast_buffers=False)


@contextmanager
def join_ranks(device: str = "") -> Iterator[Ranks]:
    """Joins the processes that ``torchrun`` started (alone without it) and leaves them at the end.

    ``device``: ``cpu``, ``cuda`` or empty for a GPU if there is one. GPUs talk over NCCL, processors over gloo.

    Raises UserError as :func:`named_device`, and Stopped where another process has ended in the midst of it: why is
    that one's to say.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place, backend = named_device(device), "gloo"
    if place == torch.device("cuda"):  # none of a number
        place, backend = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(place)
    if world_size == 1:
        yield Ranks(rank, world_size, place)
        return
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(rank, world_size, place)
    except RuntimeError as error:
        if "gloo/transport" not in str(error):
            raise
        _log.warning("process %d ends, since another one of this training has", rank)
        # Meanwhile torchrun ends it: were it the first to end, the other's reason would be lost.
        time.sleep(_GRACE_S)
        raise Stopped(signal.SIGTERM) from error
    finally:
        dist.destroy_process_group()


def named_device(name: str) -> torch.device:
    """The processor or the accelerator that torch finds, perhaps of a number; an empty name: a GPU of CUDA's, if any.

    Raises UserError where there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    try:
        device = torch.device(name or ("cuda" if "cuda" in kinds else "cpu"))
    except RuntimeError:
        device = None
    count = torch.accelerator.device_count()
    if device is None or device.type not in kinds or (device.type != "cpu" and (device.index or 0) >= count):
        raise UserError(
            f"there is no device {name!r} here: choose {' or '.join(kinds)} (MODEL.DEVICE, or --device), or leave it "
            "out"
        )
    return device


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of ``values`` over the processes, without gradient; themselves where there is only one."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
