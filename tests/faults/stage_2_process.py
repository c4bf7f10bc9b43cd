"""What the fault tests of stage 2 run in a process of its own, to be killed."""

import sys


def segment_and_filter(options: list[str]) -> None:
    """Stage 2 with a command line's options."""
    import torch

    from diSegmenter import segmentAndFilter

    torch.set_num_threads(1)
    sys.argv = ["segmentAndFilter.py", *options]
    segmentAndFilter.main()
