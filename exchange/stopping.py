"""Ctrl-C, SIGTERM and SIGHUP: a process ends with its last good state on disk, after those that it started."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks this process to end. Like KeyboardInterrupt it is no Exception: only what tidies up catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.exit_code = number, 128 + number


class _Requests:
    """What was asked of this process, and whether it is not to be disturbed now."""

    number: int | None = None
    put_off = False


@contextmanager
def listening() -> Iterator[None]:
    """Within the block a signal raises :class:`Stopped` in the main thread; one that is ignored (nohup) stays so.

    It does so once, as tidying up must not be disturbed by the same wish; only Ctrl-C pressed again insists.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    hook_before = sys.unraisablehook
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _handle)
    sys.unraisablehook = _ask_again
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: object) -> None:
    is_first = _Requests.number is None
    if is_first:
        _Requests.number = number
    insists = number == signal.SIGINT and not is_first
    if insists or (is_first and not _Requests.put_off):
        raise Stopped(number)


def _ask_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised within ``__del__`` and the like; a stop comes again, soon and elsewhere."""
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    _Requests.number = None
    threading.Timer(0.01, os.kill, (os.getpid(), unraisable.exc_value.number)).start()


@contextmanager
def put_off() -> Iterator[Callable[[], bool]]:
    """Signals wait until the block ends; it gets a function that says whether there was one."""
    _Requests.put_off = True
    try:
        yield lambda: _Requests.number is not None
    finally:
        _Requests.put_off = False
    if _Requests.number is not None:
        raise Stopped(_Requests.number)


_children: set["subprocess.Popen[bytes]"] = set()


def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Starts a process in a session of its own, so that Ctrl-C reaches it by way of this one alone."""
    in_main = threading.current_thread() is threading.main_thread()  # where signals are raised
    try:
        with put_off() if in_main else nullcontext():
            child = subprocess.Popen(command, start_new_session=True, **options)
            _children.add(child)
    except Stopped:  # as it was being started: it is there
        end(child)
        raise
    return child


def run(command: Sequence[str], **options: Any) -> int:
    """Runs a process to its end and returns its exit code; if this process is to end, that one ends first."""
    child = start(command, **options)
    try:
        return wait(child)
    except BaseException:
        end(child)
        raise


def wait(child: "subprocess.Popen[bytes]") -> int:
    """The exit code of ``child`` when it has ended; what it left behind of its own is ended, too."""
    code = child.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    _children.discard(child)
    return code


def end(child: "subprocess.Popen[bytes]") -> None:
    """Asks ``child`` to end, and waits until it has: a training writes a checkpoint first."""
    if child.poll() is None:
        child.terminate()
    wait(child)


def end_children() -> None:
    """Ends all that was started and runs still, side by side."""
    threads = [threading.Thread(target=end, args=(child,)) for child in list(_children)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def kill_children() -> None:
    """Ends them at once, with what they have started in their sessions."""
    for child in list(_children):
        child.kill()
        wait(child)
