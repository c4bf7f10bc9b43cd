"""Numbers that the processes of one training share."""

import torch.distributed
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of ``value`` over the processes; ``value`` itself where there is only one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
