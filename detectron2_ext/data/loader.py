"""The configuration's data sets, pool and loaders: the only place of this package that reads it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from detectron2_ext.data.blend import BLENDS
from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.draws import FEW, ClassDraws, Draws, RandomDraws, UniformDraws
from detectron2_ext.data.geometry import ResizeCropFlip
from detectron2_ext.data.mapper import Paster, TestMapper, TrainMapper
from detectron2_ext.data.object_size import StatisticalSize, adaptive_factors, class_sizes
from detectron2_ext.data.paste import PoolPaster
from detectron2_ext.data.pool import ImagesWithMasks, IndexedCutouts, InstancePool
from detectron2_ext.data.sampler import ImageStream, StreamSampler, repeat_factors
from detectron2_ext.data.skipped import SkippedFiles
from exchange.catalog import dataset_paths
from exchange.errors import UserError
from exchange.feedback import Feedback
from exchange.layout import RunLayout

_log = logging.getLogger(__name__)


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


def build_pool(
    cfg: CfgNode, layout: RunLayout, round_: int, dataset: DetectionDataset
) -> InstancePool | None:
    """What a round pastes from, or None if it pastes nothing from a pool.

    ``dataset``: the training set, whose category ids give the class indices. Raises UserError where the
    pool's annotation file is missing or does not fit.
    """
    if cfg.INPUT.USE_COPY_METHOD == "none":
        return None
    crop = cfg.INPUT.INST_POOL_CROP
    if cfg.INPUT.INST_POOL_FEED:
        rounds = [round_] if cfg.SEGMENTER.LATEST_ROUND_ONLY else range(round_ + 1)
        cutouts = IndexedCutouts(layout, rounds) if crop else ImagesWithMasks.of_run(layout, rounds)
    elif cfg.INPUT.INST_POOL:
        cutouts = ImagesWithMasks.of_annotations(cfg.INPUT.INST_POOL_PATH, cfg.INPUT.INST_POOL_ROOT)
    else:
        raise UserError(
            f"INPUT.USE_COPY_METHOD is {cfg.INPUT.USE_COPY_METHOD}, but there is no pool: set "
            "INPUT.INST_POOL_FEED or INPUT.INST_POOL to true"
        )
    return InstancePool(
        cutouts, dataset.category_ids, crop=crop, mask_threshold=cfg.INPUT.INST_POOL_MASK_THRESHOLD
    )


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
    pasters: list[Paster] = []
    if pool is not None and len(pool):
        origin = round_ * cfg.SOLVER.ROUND_ITERS * batch_size
        pasters.append(_build_paster(cfg, dataset, pool, feedback, round_, origin, seed))
    mapper = TrainMapper(
        dataset, images, _build_augmentation(cfg), pasters, seed, bgr=_choose(cfg, "FORMAT", _IS_BGR)
    )
    first, last = start_iteration * batch_size, (start_iteration + num_iterations) * batch_size
    sampler = StreamSampler(_build_stream(cfg, dataset, images, seed), first, last, rank, world_size)
    loader = _data_loader(cfg, mapper, sampler, batch_size // world_size)
    return BatchLoader(loader, SkippedFiles(len(images)))


def build_test_loader(
    cfg: CfgNode, dataset: DetectionDataset, *, rank: int = 0, world_size: int = 1, batch_size: int = 1
) -> BatchLoader:
    """Every ``world_size``-th image of ``dataset`` from image ``rank`` on, once, in order, for testing."""
    mapper = TestMapper(
        dataset, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, bgr=_choose(cfg, "FORMAT", _IS_BGR)
    )
    loader = _data_loader(cfg, mapper, range(rank, len(dataset), world_size), batch_size)
    return BatchLoader(loader, SkippedFiles(len(dataset)))


def training_set_name(cfg: CfgNode) -> str:
    """The one entry of DATASETS.TRAIN; raises UserError if there are none or several."""
    if len(cfg.DATASETS.TRAIN) != 1:
        raise UserError(f"DATASETS.TRAIN names {len(cfg.DATASETS.TRAIN)} data sets: name one")
    return cfg.DATASETS.TRAIN[0]


_IS_BGR = {"RGB": False, "BGR": True}
_FLIP_PROBABILITY = {"horizontal": 0.5, "none": 0.0}


def _choose(cfg: CfgNode, key: str, known: dict[str, Any]) -> Any:
    value = cfg.INPUT[key]
    if value not in known:
        raise UserError(f"INPUT.{key} is {value!r}, which does not exist: choose from {', '.join(known)}")
    return known[value]


def _build_augmentation(cfg: CfgNode) -> ResizeCropFlip:
    _choose(cfg, "CUSTOM_AUG", {"EfficientDetResizeCrop": None})
    flip_probability = _choose(cfg, "RANDOM_FLIP", _FLIP_PROBABILITY)
    return ResizeCropFlip(cfg.INPUT.TRAIN_SIZE, tuple(cfg.INPUT.SCALE_RANGE), flip_probability)


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


def _build_paster(
    cfg: CfgNode,
    dataset: DetectionDataset,
    pool: InstancePool,
    feedback: Feedback | None,
    round_: int,
    origin: int,
    seed: int,
) -> PoolPaster:
    factors = None
    if feedback is not None and cfg.INPUT.INST_POOL_ADAPTIVE_SIZE and round_ >= cfg.FEEDBACK.FROM_ROUND:
        if feedback.categories != dataset.category_ids.tolist():
            raise UserError(
                f"the feedback of round {feedback.round} is about the categories of {feedback.dataset}, not "
                "those of DATASETS.TRAIN: use the feedback of this data set"
            )
        factors = adaptive_factors(feedback.box_ap)
    size = StatisticalSize(class_sizes(dataset), factors)
    unknown = [name for name in cfg.INPUT.CP_METHOD if name not in BLENDS]
    if unknown or not cfg.INPUT.CP_METHOD:
        raise UserError(f"INPUT.CP_METHOD is {cfg.INPUT.CP_METHOD}: choose from {', '.join(BLENDS)}")
    blends = [BLENDS[name] for name in cfg.INPUT.CP_METHOD]
    flip_probability = _choose(cfg, "RANDOM_FLIP", _FLIP_PROBABILITY)
    return PoolPaster(pool, _build_draws(cfg, pool, origin, seed), size, blends, flip_probability)


def _build_draws(cfg: CfgNode, pool: InstancePool, origin: int, seed: int) -> Draws:
    many = (0, cfg.INPUT.INST_POOL_MAX_SAMPLES)
    kinds = {
        "uniform": lambda: UniformDraws(len(pool), seed, origin),
        "one": lambda: RandomDraws(len(pool), FEW),
        "random": lambda: RandomDraws(len(pool), many),
        "cas_random": lambda: ClassDraws(pool.categories, many),
        "cats_random": lambda: ClassDraws(pool.categories, many, among_image_classes=True),
    }
    return _choose(cfg, "INST_POOL_SAMPLE_TYPE", kinds)()


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
