"""Batches from loader processes, with errors that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from exchange.errors import UserError

Batch = list[dict[str, Any]]

_CAUGHT = "in DataLoader worker process"  # how torch marks the traceback of an error in a worker


def load_batches(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of ``loader``.

    Raises UserError when one of its processes died, or met a UserError (then with that one's sentence).
    """
    try:
        yield from loader
    except UserError as error:
        # torch wraps the worker's traceback around the message.
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        # What a worker raised is worth its traceback; a connection to it breaks only with the worker itself.
        if _CAUGHT in str(error) or (
            isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)
        ):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"a process that loads images died ({said}): the last checkpoint is "
            "intact, call again to resume; if memory ran out, lower DATALOADER.NUM_WORKERS"
        ) from error
