"""From the configuration to the batches of a training: data set, order, view, and what is pasted."""

from __future__ import annotations

import numpy as np
from fvcore.common.config import CfgNode

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import BatchLoader, SkippedFiles, batches_in_order, is_bgr
from detectron2_ext.data.mapper import TrainMapper
from detectron2_ext.data.sampler import GroupedStream, ImageStream, StreamSampler, repeat_factors
from detectron2_ext.data.view import ResizeCropFlip, SceneReader
from detectron2_ext.paste.build import build_pasters, build_recoloring, flip_probability
from detectron2_ext.paste.pool import InstancePool
from detectron2_ext.paste.triple import TestImages, TestSchedule, TripleMapper
from exchange.catalog import read_training_set
from exchange.config import at_least, choose, limits
from exchange.errors import UserError
from exchange.feedback import Feedback
from exchange.run import round_iterations


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
) -> BatchLoader:
    """The training batches of one rank from ``start_iteration`` on.

    Image ``k`` of the training, and what is pasted into it, depends on SEED, the pool and ``k`` alone:
    not on the number of ranks or loader processes, nor on where a resumed training starts.

    Args:
        cfg: the configuration.
        start_iteration: counted over all rounds.
        num_iterations: how many batches; all that SOLVER.MAX_ITER leaves, by default.
        rank, world_size: which share of each batch of SOLVER.IMS_PER_BATCH images.
        dataset: the training set; DATASETS.TRAIN is read if None.
        pool: what to paste, of the round that ``start_iteration`` lies in; None: nothing.
        feedback: gives the adaptive object sizes from round FEEDBACK.FROM_ROUND on.

    Raises:
        UserError: the batch does not divide among the ranks, no image can be trained on, or a setting has a
            value that does not exist.
    """
    seed = cfg.SEED
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    if batch_size % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}, which does not divide among {world_size} processes: "
            "choose a multiple"
        )
    if num_iterations is None:
        num_iterations = cfg.SOLVER.MAX_ITER - start_iteration
    dataset = dataset or DetectionDataset(*read_training_set(cfg))
    images = dataset.trainable_images()
    if not len(images):
        named = " + ".join(cfg.DATASETS.TRAIN)
        raise UserError(f"data set {named} has no image with an object: nothing to train on")
    round_ = start_iteration // round_iterations(cfg)
    reader, copied_from = (
        SceneReader(dataset, build_augmentation(cfg), build_recoloring(cfg, part, dataset, images))
        for part in ("dst", "src")
    )
    pasters = build_pasters(cfg, copied_from, images, pool, feedback, round_, seed)
    mapper: TrainMapper | TripleMapper = TrainMapper(reader, images, pasters, seed, bgr=is_bgr(cfg))
    if cfg.INPUT.ACTIVE_SELECT:
        schedule = TestSchedule(
            batch_size, world_size, most=cfg.MODEL.ACTIVE_TEST_BATCHSIZE, every=cfg.MODEL.ACTIVE_TEST_EVERY
        )
        mapper = TripleMapper(mapper, TestImages(reader, seed, schedule), pool)
    first, last = start_iteration * batch_size, (start_iteration + num_iterations) * batch_size
    sampler = StreamSampler(_build_stream(cfg, dataset, images, seed), first, last, rank, world_size)
    loader = batches_in_order(cfg, mapper, sampler, batch_size // world_size)
    return BatchLoader(loader, SkippedFiles(len(images)))


def build_augmentation(cfg: CfgNode) -> ResizeCropFlip:
    """How training images are seen."""
    choose(cfg, "INPUT.CUSTOM_AUG", {"EfficientDetResizeCrop": None})
    low, high = limits(cfg, "INPUT.SCALE_RANGE")
    if low <= 0:
        raise UserError(f"INPUT.SCALE_RANGE is {[low, high]}: it is two numbers above 0")
    return ResizeCropFlip(at_least(1, cfg, "INPUT.TRAIN_SIZE"), (low, high), flip_probability(cfg))


def _build_stream(
    cfg: CfgNode, dataset: DetectionDataset, images: np.ndarray, seed: int
) -> ImageStream | GroupedStream:
    samplers = {
        "RepeatFactorTrainingSampler": lambda: repeat_factors(
            dataset, images, cfg.DATALOADER.REPEAT_THRESHOLD
        ),
        "TrainingSampler": lambda: np.ones(len(images)),
    }
    factors = choose(cfg, "DATALOADER.SAMPLER_TRAIN", samplers)()
    stream = ImageStream(images, factors, seed)
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        return stream
    heights, widths = dataset.sizes.T
    return GroupedStream(stream, widths > heights, cfg.SOLVER.IMS_PER_BATCH)
