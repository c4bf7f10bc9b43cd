"""Lists what large annotation files have become, so that they are read once, or removes it.

The cache is the folder $MRCA_CACHE, or ~/.cache/mrca. All in it is made again when it is needed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import arrays
from exchange.command_line import make_parser
from exchange.errors import run_cli


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "--clear")
    parser.add_argument("--clear", action="store_true", help="remove all of it")
    return parser


def main() -> None:
    if build_parser().parse_args().clear:
        print(f"removed {arrays.clear() / 1e6:.0f} MB")
        return
    for folder, size in arrays.entries():
        print(f"{size / 1e6:8.0f} MB  {folder}")


if __name__ == "__main__":
    run_cli(main)
