"""Waiting for what another process makes, with a word about it now and then."""

import logging
import math
import time

from exchange import files
from exchange.errors import UserError

_REPEAT_S = 180.0  # from one line in the log to the next
_log = logging.getLogger(__name__)


class Wait:
    """Waits for another process's work, and says every few minutes for what, where, since when and who makes it.

    Args:
        what: is waited for.
        path: where it will be.
        command: which makes it.
        timeout_s, poll_s: seconds to wait in all, and at once.
    """

    def __init__(self, what: str, path: str, command: str, timeout_s: float, poll_s: float) -> None:
        self._what, self._path, self._command = what, path, command
        self._timeout_s, self._poll_s = timeout_s, poll_s
        self._since, self._began = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic()
        self._told = -math.inf

    def pause(self) -> None:
        """Waits a little; raises UserError where it has been too long."""
        waited = time.monotonic() - self._began
        if waited >= self._timeout_s:
            raise UserError(
                f"waited {self._timeout_s:.0f} s (since {self._since}) for {self._what} in vain, {self._path} is not "
                f"complete: run what makes it ({self._command}), or raise FEEDBACK.TIMEOUT"
            )
        if waited - self._told >= _REPEAT_S:
            self._told = waited
            _log.info(
                "waiting since %s for %s at %s: %s makes it",
                self._since,
                self._what,
                self._path,
                self._command,
            )
        time.sleep(min(self._poll_s, self._timeout_s - waited))


def wait_for(path: str, what: str, command: str, timeout_s: float, poll_s: float = 1.0) -> None:
    """Returns when ``path`` exists, which ``command`` makes; for the rest see :class:`Wait`."""
    wait = Wait(what, path, command, timeout_s, poll_s)
    while not files.exists(path):
        wait.pause()
