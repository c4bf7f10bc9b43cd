"""The checkpoints of a run: ``train/model_0008999.pth`` is the state after 9,000 iterations."""

from __future__ import annotations

import re
from typing import Any, Protocol

import torch

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling.described import marked_checkpoint, marker_in
from detectron2_ext.modeling.weights import read_weight_file
from exchange import files
from exchange.decisions import forget_decisions_after, write_decisions
from exchange.errors import UserError
from exchange.layout import RunLayout

_NAME = re.compile(r"model_(\d{7,})\.pth")
_PARTS = ("model", "optimizer", "scheduler", "scaler", "iteration")


class Checkpoints(Protocol):
    """Where a training leaves its state."""

    def save(self, state: TrainingState) -> str:
        """Writes the state, then makes it the one to resume from; returns its path.

        Raises UserError when it cannot be written; what was there before is then untouched.
        """


class RunCheckpoints:
    """Reads and writes the checkpoints in a folder.

    ``round_iters``: length of a round; the checkpoints at the ends of rounds stay, of the others the ``keep``
    newest (counting the one just written).
    """

    def __init__(self, folder: str, round_iters: int, keep: int) -> None:
        self._folder = folder
        self._round_iters = round_iters
        self._keep = keep

    def path(self, iteration: int) -> str:
        """Where the state after ``iteration`` iterations belongs; for 0 that is ``model_initial.pth``."""
        return files.join(self._folder, f"model_{iteration - 1:07}.pth" if iteration else "model_initial.pth")

    def save(self, state: TrainingState) -> str:
        """See :class:`Checkpoints`."""
        path = self.path(state.iteration)
        try:
            with files.atomic_writer(path) as file:
                torch.save(state.state_dict(), file)
            files.write_bytes(marker_in(self._folder), path.rsplit("/", 1)[1].encode())
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise UserError(
                f"the checkpoint {path} could not be written ({_reason(error)}): free some space and call "
                f"again, training resumes from {self.latest() or 'its beginning'}"
            ) from error
        self.prune(state.iteration)
        return path

    def latest(self) -> str | None:
        """The checkpoint to resume from."""
        path = marked_checkpoint(self._folder)
        if path is not None and not files.exists(path):
            raise UserError(
                f"{marker_in(self._folder)} names {path}, which does not exist: write the name of a checkpoint into "
                "it, or remove it to start from MODEL.WEIGHTS"
            )
        return path

    def prune(self, newest: int) -> None:
        """Removes the checkpoints that need not stay, now that ``newest`` iterations are saved."""
        done = sorted(int(match[1]) + 1 for match in files.matches(self._folder, _NAME))
        passing = [iteration for iteration in done if iteration % self._round_iters and iteration < newest]
        for iteration in passing[: max(len(passing) - self._keep + 1, 0)]:
            files.remove(self.path(iteration))


class DecisionsFirst:
    """Checkpoints before each of which the decisions of a gradient selection are written.

    Args:
        checkpoints: where the state goes.
        round_: whose table they belong to; what is in it beyond ``state``, from which training goes on, is removed.
    """

    def __init__(
        self, checkpoints: Checkpoints, layout: RunLayout, round_: int, state: TrainingState, ranks: Ranks
    ) -> None:
        self._checkpoints, self._layout, self._round = checkpoints, layout, round_
        if ranks.is_first:
            forget_decisions_after(layout, round_, state.iteration)

    def save(self, state: TrainingState) -> str:
        """See :class:`Checkpoints`."""
        assert state.cache is not None  # whose decisions these are
        if state.cache.decisions:
            write_decisions(self._layout, self._round, state.iteration, state.cache.decisions)
            state.cache.decisions = []
        return self._checkpoints.save(state)


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a run's checkpoint, as TrainingState.state_dict returns it, on the CPU.

    Raises UserError where the file is missing, damaged or holds anything else.
    """
    try:
        content = read_weight_file(path)
    except UserError as error:
        raise UserError(
            f"{error}; to resume from an older one, write its name into last_checkpoint"
        ) from error
    missing = [name for name in _PARTS if name not in content]
    if missing:
        raise UserError(f"{path} is no checkpoint of a run: it has no {' and no '.join(missing)}")
    return content


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
