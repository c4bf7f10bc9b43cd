"""The log of each stage in the run folder: ``logs/STAGE.log``."""

import logging

from exchange import files
from exchange.layout import RunLayout

_FORMAT = "%(asctime)s %(levelname)s {rank}%(name)s: %(message)s"


def log_to_run(layout: RunLayout, stage: str, rank: int | None = None) -> None:
    """Also writes the log of this process to the run folder, from now on and behind what is there.

    What ends the process is its last line (:func:`~exchange.errors.run_cli`). Nothing is done where the run is not a
    folder on this machine.
    """
    if "://" in layout.root:
        return
    files.make_dirs(layout.logs_dir)
    handler = logging.FileHandler(files.join(layout.logs_dir, f"{stage}.log"))
    handler.setFormatter(logging.Formatter(_FORMAT.format(rank="" if rank is None else f"rank {rank} ")))
    logging.getLogger().addHandler(handler)
    handler.handle(logging.LogRecord(__name__, logging.INFO, __file__, 0, "started", None, None))
