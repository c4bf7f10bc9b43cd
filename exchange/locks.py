"""One process for one work of a run: the second is refused and told who is at it, or has to wait."""

import hashlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout

_log = logging.getLogger(__name__)


@contextmanager
def only_one(layout: RunLayout, work: str) -> Iterator[None]:
    """Holds ``locks/WORK.lock``, which the system takes back when the process ends, however it ends.

    In a bucket, which has no locks, the processes of this machine alone see each other.

    Raises UserError, naming process and host, where another process holds it.
    """
    folder = _folder(layout)
    owner = os.path.join(folder, f"{work}.owner")
    try:
        with FileLock(os.path.join(folder, f"{work}.lock"), timeout=0):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            Path(owner).write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            yield
    except Timeout as error:
        who = Path(owner).read_text(errors="replace") if os.path.exists(owner) else "a process"
        raise UserError(
            f"{layout.root}: {who} is at '{work}' already: wait for it, or end it and start this again"
        ) from error


@contextmanager
def in_turn(layout: RunLayout, work: str) -> Iterator[None]:
    """Holds the same lock, as soon as no other process does; says so where it has to wait."""
    lock = FileLock(os.path.join(_folder(layout), f"{work}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("%s: waiting for another process that is at '%s'", layout.root, work)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _folder(layout: RunLayout) -> str:
    folder = layout.locks_dir
    if "://" in folder:
        digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
        folder = os.path.join(tempfile.gettempdir(), f"mrca-locks-{digest}")
    files.make_dirs(folder)
    return folder
