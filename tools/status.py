#!/usr/bin/env python3
"""How far a run is: its round and stage, what is waited for, what is left, how long that will take.

Reads a few small files of the run folder, so it may be asked while the stages run, from another machine, of a bucket.
Exit code 0: finished, 10: running, 11: waiting (nothing was written for a while), 12: failed.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files
from exchange.command_line import make_parser
from exchange.errors import run_cli
from exchange.layout import RunLayout

EXIT_CODES = {"finished": 0, "running": 10, "waiting": 11, "failed": 12}


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "runs/quickstart --watch")
    parser.add_argument("run", metavar="RUN", help="run folder, or its URL")
    parser.add_argument(
        "--watch", action="store_true", help="again and again, until it is finished or failed"
    )
    parser.add_argument("--every", type=float, default=10.0, metavar="S", help="seconds between two looks")
    parser.add_argument(
        "--quiet",
        type=float,
        default=900.0,
        metavar="S",
        help="after so many seconds without a new file it counts as waiting",
    )
    parser.add_argument(
        "--disk", action="store_true", help="add up all files in a bucket, too, which takes long"
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    from tools.run_status import look  # only now: what --help should not take

    layout = RunLayout(args.run.rstrip("/"))
    while True:
        now = time.time()
        status = look(layout, now, args.quiet)
        lines = status.lines()
        if args.disk or "://" not in layout.root:
            lines.append(f"disk: {files.disk_usage(layout.root) / 1e9:.2f} GB")
        print("\n".join(lines), flush=True)
        if not args.watch or status.state in ("finished", "failed"):
            break
        time.sleep(args.every)
        print()
    sys.exit(EXIT_CODES[status.state])


if __name__ == "__main__":
    run_cli(main)
