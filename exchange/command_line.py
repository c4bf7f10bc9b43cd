"""Command lines that look alike: the help of every option ends with its default, every help with an example.

And what else reaches the terminal: no noise of others, a line for what is left out.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Says the default of an option, unless its help does so in words or there is nothing to say."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        if silent or not action.option_strings or "(default" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"


def make_parser(description: str | None, example: str) -> argparse.ArgumentParser:
    """A parser for the program as it was called; ``example``: arguments that work."""
    return argparse.ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description=description,
        epilog=_epilog(example),
        formatter_class=_Help,
    )


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, example: str
) -> argparse.ArgumentParser:
    """A parser for the sub-command ``name``, which does ``what``; ``example``: arguments of it that work."""
    end = _epilog(f"{name} {example}")
    return commands.add_parser(name, help=what, description=what, epilog=end, formatter_class=_Help)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """``--device``, of which an empty text stands for the default."""
    parser.add_argument(
        "--device", default="", metavar="D", help="cpu or cuda (default: a GPU if there is one)"
    )


def _epilog(example: str) -> str:
    program = sys.argv[0]
    return f"example:\n  {f'python {program}' if program.endswith('.py') else program} {example}"


def quiet_model_libraries() -> None:
    """Keeps the warnings and loading bars of those model libraries that are imported off the terminal.

    What they cannot go on with they raise. Downloads, which may take long, keep their bars.
    """
    for name in {"transformers", "diffusers"} & sys.modules.keys():
        hub = importlib.import_module("huggingface_hub.utils")
        had_bars = not hub.are_progress_bars_disabled()
        library = importlib.import_module(f"{name}.utils.logging")
        library.set_verbosity_error()
        library.disable_progress_bar()  # transformers' disables the hub's, too
        if had_bars:
            hub.enable_progress_bars()


@contextmanager
def left_out_without_matplotlib(picture: str) -> Iterator[None]:
    """Around what draws ``picture``: without matplotlib, a line says that it is left out."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        _log.warning("%s is left out: matplotlib is not installed", picture)
