"""How the small models of LVIS-Digits learn: AdamW, a learning rate of one cycle, clipped gradients."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm


def optimising(
    parameters: list[nn.Parameter],
    steps: int,
    rate: float,
    weight_decay: float,
    title: str,
    *,
    warm_up: float = 0.1,
    max_norm: float = math.inf,
) -> Iterator[Callable[[Tensor], None]]:
    """For each step what takes it, given the loss; a bar called ``title`` tells the last one.

    Args:
        rate: the largest learning rate, reached after the share ``warm_up`` of the steps.
        max_norm: of all gradients together.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=warm_up)
    progress = tqdm(range(steps), title)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")

    for _ in progress:
        yield step
