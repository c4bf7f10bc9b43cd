"""Batches from loader processes, with errors that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from exchange.errors import UserError

Batch = list[dict[str, Any]]


def load_batches(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of ``loader``.

    Raises UserError when one of its processes died, or met a UserError (then with that one's sentence).
    """
    try:
        yield from loader
    except UserError as error:
        # torch wraps the worker's traceback around the message.
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads images died ({str(error).splitlines()[0]}): the last checkpoint is "
            "intact, call again to resume; if memory ran out, lower DATALOADER.NUM_WORKERS"
        ) from error
