"""What a person watches during training: ``metrics.json``, the progress bar and TensorBoard."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from detectron2_ext.distributed import Ranks, mean_over_ranks
from detectron2_ext.engine.tensorboard import add_metrics
from exchange import files
from exchange.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class LossWatch:
    """Collects the losses of the iterations since the last look, and takes the time.

    Losses on a GPU stay there until :meth:`look`, so that no iteration waits for it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._seen: list[tuple[int, dict[str, Tensor], list[str]]] = []
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, iteration: int, losses: dict[str, Tensor], images: Sequence[str], waited: float) -> None:
        """Takes in an iteration of this process: its number (from 1), its images, seconds waited for them.

        Raises UserError at once for a loss on the CPU that is not finite.
        """
        self._seen.append((iteration, losses, list(images)))
        self._waited += waited
        if self._ranks.device.type == "cpu":
            _require_finite(*self._seen[-1])

    def look(self) -> dict[str, float]:
        """Means since the last look: each loss (over all processes) and their sum ``total_loss``; seconds an
        iteration took (``time``) and waited for its images (``data_time``); ``images_per_second`` of all processes.

        Raises UserError when a loss was not finite.
        """
        table = torch.stack([torch.stack(list(losses.values())) for _, losses, _ in self._seen])
        if not table.isfinite().all():
            for seen in self._seen:
                _require_finite(*seen)
        means = dict(zip(self._seen[0][1], mean_over_ranks(table.mean(dim=0)).tolist(), strict=True))
        count, now = len(self._seen), time.perf_counter()
        images = self._ranks.world_size * sum(len(names) for _, _, names in self._seen)
        speed = {
            "time": (now - self._since) / count,
            "data_time": self._waited / count,
            "images_per_second": images / (now - self._since),
        }
        self._seen, self._waited, self._since = [], 0.0, now
        return {"total_loss": sum(means.values()), **means, **speed}


class Reporter:
    """Writes ``metrics.json`` (a JSON object a line, whole after every write) and moves the progress bar.

    Args:
        path: of ``metrics.json``. Lines after ``start`` are dropped: a resumed training writes them again.
        start, end: iterations of the round that are done, and that are to be done.
        title: of the progress bar.
        ranks: only the first process reports.
        board: of TensorBoard, if there is one.
    """

    def __init__(
        self, path: str, start: int, end: int, title: str, ranks: Ranks, board: SummaryWriter | None = None
    ) -> None:
        self._path, self._end, self._ranks, self._board = path, end, ranks, board
        written = files.read_bytes(path).decode().splitlines() if files.exists(path) else []
        self._lines = [line for line in written if json.loads(line)["iteration"] <= start]
        self._bar = tqdm(total=end, initial=start, desc=title, unit="it", disable=not ranks.is_first)

    def step(self) -> None:
        """One iteration is done."""
        self._bar.update()

    def report(self, iteration: int, learning_rate: float, values: dict[str, float]) -> None:
        """Writes a line with ``values`` (as :meth:`LossWatch.look` gives them) and shows the chief ones."""
        if not self._ranks.is_first:
            return
        shown = {
            "lr": learning_rate,
            **values,
            "eta_seconds": values["time"] * (self._end - iteration),
            "memory_mib": peak_memory_mib(self._ranks.device),
        }
        if self._board:
            add_metrics(self._board, iteration, shown)
        self._lines.append(json.dumps({"iteration": iteration, **shown}))
        files.write_bytes(self._path, ("\n".join(self._lines) + "\n").encode())
        waiting = values["data_time"] / values["time"]
        self._bar.set_postfix_str(
            f"loss {values['total_loss']:.3f}, lr {learning_rate:.1e}, waiting for data {waiting:.0%}"
        )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held so far: on the GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _require_finite(iteration: int, losses: dict[str, Tensor], images: list[str]) -> None:
    bad = [name for name, loss in losses.items() if not loss.isfinite()]
    if bad:
        raise UserError(
            f"{', '.join(bad)} became not finite in iteration {iteration} on the images {', '.join(images)}: "
            "look at them and their annotations, or lower SOLVER.BASE_LR; the last checkpoint is intact"
        )
