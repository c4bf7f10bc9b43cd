#!/usr/bin/env python3
"""What large annotation files have become, so that they are read once: lists it, or removes it.

usage: tools/cache.py [--clear]

The cache is the folder $MRCA_CACHE, or ~/.cache/mrca. All in it is made again when it is needed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import arrays
from exchange.errors import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clear", action="store_true", help="remove all of it")
    if parser.parse_args().clear:
        print(f"removed {arrays.clear() / 1e6:.0f} MB")
        return
    for folder, size in arrays.entries():
        print(f"{size / 1e6:8.0f} MB  {folder}")


if __name__ == "__main__":
    run_cli(main)
