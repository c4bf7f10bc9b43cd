"""Command lines that look alike: the help of every option ends with its default, every help with an example."""

from __future__ import annotations

import argparse
import os
import sys


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


def _epilog(example: str) -> str:
    program = sys.argv[0]
    return f"example:\n  {f'python {program}' if program.endswith('.py') else program} {example}"
