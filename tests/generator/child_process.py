"""What the tests run in another process."""

import sys

import torch


def generate(options: list[str]) -> None:
    """Stage 1 with a command line's options."""
    from generator import generate

    torch.set_num_threads(1)
    sys.argv = ["generate.py", *options]
    generate.main()
