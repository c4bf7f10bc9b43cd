"""The one kind of error that a user caused and a user can mend."""

import logging
import sys
from collections.abc import Callable


class UserError(Exception):
    """One sentence: what is wrong, where (file, key or option), and what to do about it."""


def run_cli(main: Callable[[], None]) -> None:
    """Runs ``main`` with logging set up; a :class:`UserError` becomes one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
