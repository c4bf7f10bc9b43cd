"""The one kind of error that a user caused and a user can mend."""

import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Callable

from exchange import stopping

STOPPED = "stopped; the same command goes on\n"
_REMEDIES = {
    "make room there, or give yourself the right to write, and start again; what is done stays": (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    ),
    "give another path": (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}


class UserError(Exception):
    """One sentence: what is wrong, where (file, key or option), and what to do about it."""


def run_cli(main: Callable[[], None]) -> None:
    """Runs ``main`` with logging set up.

    A :class:`UserError`, a full disk and a file that may not or cannot be written become one line on stderr and exit
    code 2; a signal that ends the process one line and 128 and its number (exchange/stopping.py), also where the
    interrupted code made another error of it. It ends without a word where nobody reads its output any more, as in
    front of ``| head``.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        with stopping.listening():
            try:
                main()
                sys.stdout.flush()
            except BaseException as error:
                _end_logs(error)
                stopping.kill_children()  # none is left, unless Ctrl-C was pressed again
                if not isinstance(error, UserError | OSError) and (stopped := _stop_behind(error)):
                    raise stopped from None
                raise
    except stopping.Stopped as stopped:
        # torchrun also ends the others so when one of its processes failed, whose sentence shall be the last.
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            sys.stderr.write(STOPPED)
        sys.exit(stopped.exit_code)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.EPIPE and _nobody_reads(sys.stdout.fileno()):
            # for what is flushed on the way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        remedy = next((remedy for remedy, numbers in _REMEDIES.items() if error.errno in numbers), None)
        if remedy is None:
            raise
        # of two names, the second is that of the file which what was written beside it was to become
        sys.stderr.write(f"error: {error.filename2 or error.filename}: {error.strerror}: {remedy}\n")
        sys.exit(2)


def _stop_behind(error: BaseException) -> stopping.Stopped | None:
    """The stop that ``error`` came of; argparse, for one, fails as it tidies up after itself."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, stopping.Stopped):
        behind = behind.__context__
    return behind


def _nobody_reads(pipe: int) -> bool:
    """Whether the other end of ``pipe`` is closed; an error of this kind may also come from a connection."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end_logs(error: BaseException) -> None:
    """Leaves what ended the process as the last line of its log files; on the terminal it stands anyway."""
    if isinstance(error, SystemExit) and not error.code:
        return
    sentence = " ".join(f"{type(error).__name__}: {error}".splitlines())
    level = logging.INFO if isinstance(error, stopping.Stopped) else logging.ERROR
    record = logging.LogRecord(__name__, level, __file__, 0, sentence, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
