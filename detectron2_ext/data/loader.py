"""From the configuration to data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.geometry import ResizeCropFlip
from detectron2_ext.data.mapper import TestMapper, TrainMapper
from detectron2_ext.data.paste_builder import build_pasters, build_pool, choose, flip_probability
from detectron2_ext.data.pool import InstancePool
from detectron2_ext.data.sampler import ImageStream, StreamSampler, repeat_factors
from detectron2_ext.data.scene_reader import SceneReader
from detectron2_ext.data.skipped import SkippedFiles
from exchange.catalog import dataset_paths
from exchange.errors import UserError
from exchange.feedback import Feedback

__all__ = ["BatchLoader", "build_dataset", "build_pool", "build_test_loader", "build_train_loader"]


class BatchLoader:
    """Iterates over batches, each a list of the mapper's dictionaries.

    Files that cannot be used are counted as they turn up and listed when the iteration ends; too many of them
    stop it with a UserError (see :class:`SkippedFiles`).
    """

    def __init__(self, loader: DataLoader, skipped: SkippedFiles) -> None:
        self._loader, self.skipped = loader, skipped

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        try:
            for batch in self._loader:
                self.skipped.add(sentence for item in batch for sentence in item.pop("skipped"))
                usable = [item for item in batch if "image" in item]
                if usable:
                    yield usable
        finally:
            self.skipped.log()

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)


def build_dataset(cfg: CfgNode, name: str) -> DetectionDataset:
    """The data set called ``name``; raises UserError as the catalogue and the annotation file do."""
    return DetectionDataset.read(*dataset_paths(name, cfg))


def build_train_loader(
    cfg: CfgNode,
    *,
    start_iteration: int,
    num_iterations: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    dataset: DetectionDataset | None = None,
    pool: InstancePool | None = None,
    feedback: Feedback | None = None,
    seed: int | None = None,
) -> BatchLoader:
    """The training batches of one rank from ``start_iteration`` on.

    Image ``k`` of the training, and what is pasted into it, depends on the seed, the pool and ``k`` alone:
    not on the number of ranks or loader processes, nor on where a resumed training starts.

    Args:
        cfg: the configuration.
        start_iteration: counted over all rounds.
        num_iterations: how many batches; all that SOLVER.MAX_ITER leaves, by default.
        rank, world_size: which share of each batch of SOLVER.IMS_PER_BATCH images.
        dataset: the training set; DATASETS.TRAIN is read if None.
        pool: what to paste, of the round that ``start_iteration`` lies in (:func:`build_pool`); None:
            nothing.
        feedback: gives the adaptive object sizes from round FEEDBACK.FROM_ROUND on.
        seed: SEED by default.

    Raises:
        UserError: the batch does not divide among the ranks, no image can be trained on, or a setting has a
            value that does not exist.
    """
    seed = cfg.SEED if seed is None else seed
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    if batch_size % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}, which does not divide among {world_size} processes: "
            "choose a multiple"
        )
    if num_iterations is None:
        num_iterations = cfg.SOLVER.MAX_ITER - start_iteration
    dataset = dataset or build_dataset(cfg, training_set_name(cfg))
    images = dataset.trainable_images()
    if not len(images):
        raise UserError(f"data set {training_set_name(cfg)} has no image with an object: nothing to train on")
    round_ = start_iteration // cfg.SOLVER.ROUND_ITERS
    reader = SceneReader(dataset, _build_augmentation(cfg))
    pasters = build_pasters(cfg, reader, images, pool, feedback, round_, seed)
    mapper = TrainMapper(reader, images, pasters, seed, bgr=choose(cfg, "FORMAT", _IS_BGR))
    first, last = start_iteration * batch_size, (start_iteration + num_iterations) * batch_size
    sampler = StreamSampler(_build_stream(cfg, dataset, images, seed), first, last, rank, world_size)
    loader = _data_loader(cfg, mapper, sampler, batch_size // world_size)
    return BatchLoader(loader, SkippedFiles(len(images)))


def build_test_loader(
    cfg: CfgNode, dataset: DetectionDataset, *, rank: int = 0, world_size: int = 1, batch_size: int = 1
) -> BatchLoader:
    """Every ``world_size``-th image of ``dataset`` from image ``rank`` on, once, in order, for testing."""
    mapper = build_test_mapper(cfg, dataset)
    loader = _data_loader(cfg, mapper, range(rank, len(dataset), world_size), batch_size)
    return BatchLoader(loader, SkippedFiles(len(dataset)))


def build_test_mapper(cfg: CfgNode, dataset: DetectionDataset) -> TestMapper:
    """The images of ``dataset`` as the configuration has them tested."""
    is_bgr = choose(cfg, "FORMAT", _IS_BGR)
    return TestMapper(dataset, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, is_bgr)


def training_set_name(cfg: CfgNode) -> str:
    """The one entry of DATASETS.TRAIN; raises UserError if there are none or several."""
    if len(cfg.DATASETS.TRAIN) != 1:
        raise UserError(f"DATASETS.TRAIN names {len(cfg.DATASETS.TRAIN)} data sets: name one")
    return cfg.DATASETS.TRAIN[0]


_IS_BGR = {"RGB": False, "BGR": True}


def _build_augmentation(cfg: CfgNode) -> ResizeCropFlip:
    choose(cfg, "CUSTOM_AUG", {"EfficientDetResizeCrop": None})
    return ResizeCropFlip(cfg.INPUT.TRAIN_SIZE, tuple(cfg.INPUT.SCALE_RANGE), flip_probability(cfg))


def _build_stream(cfg: CfgNode, dataset: DetectionDataset, images: np.ndarray, seed: int) -> ImageStream:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "RepeatFactorTrainingSampler":
        factors = repeat_factors(dataset, images, cfg.DATALOADER.REPEAT_THRESHOLD)
    elif name == "TrainingSampler":
        factors = np.ones(len(images))
    else:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {name!r}, which does not exist: choose RepeatFactorTrainingSampler "
            "or TrainingSampler"
        )
    return ImageStream(images, factors, seed)


def _data_loader(cfg: CfgNode, mapper: Any, order: Any, batch_size: int) -> DataLoader:
    workers = cfg.DATALOADER.NUM_WORKERS
    of_workers = {
        "prefetch_factor": cfg.DATALOADER.PREFETCH_FACTOR,
        "persistent_workers": True,
        "worker_init_fn": _start_worker,
    }
    return DataLoader(
        mapper,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=_as_list,
        pin_memory=torch.cuda.is_available(),
        **(of_workers if workers else {}),
    )


def _as_list(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(items)


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # there is a process per core already
