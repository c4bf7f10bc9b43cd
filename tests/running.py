"""The processes that run on this machine."""

from pathlib import Path

import pytest

needs_process_list = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="the processes cannot be listed here"
)


def commands_with(part: str) -> list[str]:
    """The command lines that ``part`` stands in, of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if part in command:
            found.append(command)
    return found
