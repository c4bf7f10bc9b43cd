"""``torchrun`` for this stage: ``python -m detectron2_ext.engine.torchrun``, with the arguments of ``torchrun``.

Where a process ended with a sentence for the user (exit code 2), this ends with that code and no trace of its own; so
it does where a signal ended it, which it passes on, and waits for the processes to write a checkpoint; that it was
stopped it says once for all of them.
"""

import logging
import sys

from exchange.errors import STOPPED
from exchange.stopping import Stopped, listening


def run() -> None:
    """Runs ``torchrun`` with this process's arguments."""
    try:
        with listening():  # until torchrun does so itself, as it starts the processes
            _run()
    except Stopped as stopped:
        sys.stderr.write(STOPPED)
        sys.exit(stopped.exit_code)


def _run() -> None:
    # Only now: seconds in which a signal may come, too.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    # What it logs about a process that failed stands in the error that it raises, too.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        if any(failure.exitcode == 2 for failure in error.failures.values()):
            sys.exit(2)
        raise
    except SignalException as stopped:
        raise Stopped(stopped.sigval) from stopped


if __name__ == "__main__":
    run()
