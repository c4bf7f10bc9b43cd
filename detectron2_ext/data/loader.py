"""Loaders of training and test images, with errors that a person can read."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import cv2
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.mapper import TestMapper, TestTransform
from exchange.catalog import dataset_paths
from exchange.config import at_least, choose
from exchange.errors import UserError

_log = logging.getLogger(__name__)
_MOST_SKIPPED = 0.05  # share of a data set's images
_CAUGHT = "in DataLoader worker process"  # how torch marks the traceback of an error in a worker

Batch = list[dict[str, Any]]
T = TypeVar("T")


def build_dataset(cfg: CfgNode, name: str) -> DetectionDataset:
    """The data set called ``name``; raises UserError as the catalogue and the annotation file do."""
    return DetectionDataset.read(*dataset_paths(name, cfg))


def build_test_loader(
    cfg: CfgNode, dataset: DetectionDataset, *, rank: int = 0, world_size: int = 1
) -> BatchLoader:
    """Every ``world_size``-th image of ``dataset`` from image ``rank`` on, once, one by one in order, for testing."""
    mapper = build_test_mapper(cfg, dataset)
    loader = batches_in_order(cfg, mapper, range(rank, len(dataset), world_size), 1)
    return BatchLoader(loader, SkippedFiles(len(dataset)))


def build_test_mapper(cfg: CfgNode, dataset: DetectionDataset) -> TestMapper:
    """The images of ``dataset`` as the configuration has them tested."""
    return TestMapper(dataset, build_test_transform(cfg))


def build_test_transform(cfg: CfgNode) -> TestTransform:
    """An image as the configuration has it tested."""
    least, most = (at_least(1, cfg, f"INPUT.{name}_SIZE_TEST") for name in ("MIN", "MAX"))
    return TestTransform(least, most, is_bgr(cfg))


def batches_in_order(cfg: CfgNode, mapper: Any, order: Any, batch_size: int) -> DataLoader:
    """Loads what ``mapper`` gives for each entry of ``order``, in DATALOADER.NUM_WORKERS processes."""
    workers = at_least(0, cfg, "DATALOADER.NUM_WORKERS")
    prefetched = at_least(1 if workers else 0, cfg, "DATALOADER.PREFETCH_FACTOR")
    of_workers = {
        "prefetch_factor": prefetched,
        "persistent_workers": True,
        "worker_init_fn": start_worker,
    }
    return DataLoader(
        mapper,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),
        **(of_workers if workers else {}),
    )


def start_worker(worker: int) -> None:
    """Called in each process of a loader when it starts."""
    cv2.setNumThreads(0)  # there is a process per core already
    # Each tensor that waits here to be fetched is an open file, six an image; a shell allows 1,024, the system more.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError):  # macOS says that there is no end, and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A terminal sends these to all: a loader's process ends with the one that asks it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """Ends this process when ``parent``, which it loads for, is gone, however that ended.

    PyTorch looks whether the process above is another one now; above what a fork server started it never is, and from
    Python 3.14 on that starts all.
    """
    parent.join()
    os._exit(1)


class BatchLoader:
    """Iterates over batches, each a list of the mapper's dictionaries.

    Files that cannot be used are counted as they turn up and listed when the iteration ends; too many of them
    stop it with a UserError (see :class:`SkippedFiles`), as does what :func:`load_batches` explains.
    """

    def __init__(self, loader: DataLoader, skipped: SkippedFiles) -> None:
        self._loader, self.skipped = loader, skipped

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in load_batches(self._loader):
                self.skipped.add(sentence for item in batch for sentence in item.pop("skipped"))
                usable = [item for item in batch if "image" in item]
                if usable:
                    yield usable
        finally:
            self.skipped.log()

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)


def load_batches(
    loader: Iterable[T], does: str = "loads images", remedy: str = "lower DATALOADER.NUM_WORKERS"
) -> Iterator[T]:
    """The batches of ``loader``; ``does``: what its processes do; ``remedy``: how they take less memory.

    Raises UserError when one of them died, or met a UserError (then with that one's sentence).
    """
    try:
        yield from loader
    except UserError as error:
        # torch wraps the worker's traceback around the message.
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        # What a worker raised is worth its traceback; a connection to it breaks only with the worker itself.
        if _CAUGHT in str(error) or (
            isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)
        ):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"a process that {does} died ({said}): the last checkpoint is "
            f"intact, call again to resume; if memory ran out, {remedy}"
        ) from error


class SkippedFiles:
    """Collects sentences about unusable files, each file once.

    Raises UserError from :meth:`add` when there are more than 5 % of ``num_images``, the size of the data
    set.
    """

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self.sentences: dict[str, None] = {}  # an ordered set

    def add(self, sentences: Iterable[str]) -> None:
        """Count files; the first time that one turns up it is logged."""
        for sentence in sentences:
            if sentence not in self.sentences:
                self.sentences[sentence] = None
                _log.warning("skipped %s", sentence)
        if len(self.sentences) > _MOST_SKIPPED * self._num_images:
            raise UserError(
                f"{len(self.sentences)} files of a data set of {self._num_images} images cannot be used, the "
                f"first is {next(iter(self.sentences))}: repair the data set or remove them from it"
            )

    def log(self) -> None:
        """List them all, for the end of a run."""
        if self.sentences:
            _log.warning("%d files were skipped:\n  %s", len(self.sentences), "\n  ".join(self.sentences))


def is_bgr(cfg: CfgNode) -> bool:
    """Whether the network wants blue first."""
    return choose(cfg, "INPUT.FORMAT", {"RGB": False, "BGR": True})
