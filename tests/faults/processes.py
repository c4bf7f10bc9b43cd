"""The three stages as functions of a command line's options, for processes that are killed in the midst of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from detectron2_ext import train_net
from diSegmenter import segmentAndFilter
from generator import generate


@contextmanager
def one_thread() -> Iterator[None]:
    """What is killed and what is not compute alike, whatever the process had."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def draw(options: list[str]) -> None:
    """Stage 1, with a stand-in for the network that the feedback names."""
    from detectron2_ext.modeling import builder
    from tests.generator.tiny_pipelines import make_classifier

    def stand_in(*arguments: Any, **options: Any) -> torch.nn.Module:
        return make_classifier(4)

    loader, builder.load_feedback_network = builder.load_feedback_network, stand_in
    sys.argv = ["generate.py", *options]
    try:
        generate.main()
    finally:
        builder.load_feedback_network = loader


@one_thread()
def segment_and_filter(options: list[str]) -> None:
    """Stage 2."""
    sys.argv = ["segmentAndFilter.py", *options]
    segmentAndFilter.main()


@one_thread()
def train(options: list[str]) -> None:
    """One round of stage 3."""
    train_net.main(options)
