"""Loader processes over a long stretch: images per second, and the memory that each keeps to itself.

100,000 images with 12 objects each and a pool of 1.2 million instances, drawn without replacement. Images and cut-outs
are 20 and 200 files under many names. ``ours`` is the private memory of a loader process at the end, ``other`` the same
once it has warmed up.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.mapper import TrainMapper
from detectron2_ext.data.sampler import ImageStream, StreamSampler, repeat_factors
from detectron2_ext.data.view import ResizeCropFlip, SceneReader
from detectron2_ext.paste.composite import RandomMirror, basic
from detectron2_ext.paste.pasters import PoolPaster
from detectron2_ext.paste.plan import Scattered, StatisticalSize, UniformDraws, class_sizes
from detectron2_ext.paste.pool import IndexedCutouts, InstancePool
from exchange import files
from exchange.annotations import AnnotationFile
from exchange.layout import RunLayout
from exchange.pool_index import write_index
from tools.benchmarks import times_as_much
from tools.benchmarks.paste import write_images, write_instance

TARGET = 1.05
_IMAGES, _INSTANCES, _FILES = 100_000, 1_200_000, 4812
_WORKERS, _BATCH, _WARM, _MEASURED = 2, 16, 120, 500


def measure(device: str) -> dict[str, Any]:
    """Memory in MB after ``_WARM`` and after ``_MEASURED`` batches; ``device`` makes no difference."""
    with tempfile.TemporaryDirectory() as folder:
        loader = _loader(Path(folder))
        started = time.perf_counter()
        memory: dict[int, float] = {}
        for number, _ in enumerate(loader, start=1):
            if number in (_WARM, _MEASURED):
                children = multiprocessing.active_children()
                memory[number] = statistics.mean(_private_mb(child.pid) for child in children)
        seconds = time.perf_counter() - started
    return {
        "ours": memory[_MEASURED],
        "other": memory[_WARM],
        "unit": "MB per loader process",
        **times_as_much(memory[_MEASURED], memory[_WARM], TARGET),
        "images_per_second": _MEASURED * _BATCH / seconds,
        "workers": _WORKERS,
    }


def _private_mb(pid: int | None) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def _loader(folder: Path) -> DataLoader:
    rng = np.random.default_rng(0)
    layout = RunLayout(str(folder / "run"))
    drawn = [write_instance(rng, layout, number) for number in range(200)]
    write_index(layout, 0, [drawn[number % len(drawn)] for number in range(_FILES)])
    rounds = range(-(-_INSTANCES // _FILES))
    index = files.read_bytes(layout.pool_index(0))
    for round_ in rounds[1:]:
        files.write_bytes(layout.pool_index(round_), index)

    dataset = DetectionDataset(_many_images(write_images(rng, folder)), str(folder))
    images = dataset.trainable_images()
    pool = InstancePool(IndexedCutouts(layout, rounds), dataset.category_ids)
    plan = Scattered(pool.categories, UniformDraws(len(pool), 0, 0), StatisticalSize(class_sizes(dataset)))
    reader = SceneReader(dataset, ResizeCropFlip(640, (0.1, 2.0)))
    mapper = TrainMapper(reader, images, [PoolPaster(pool, plan, [RandomMirror()], [basic])], seed=0)
    stream = ImageStream(images, repeat_factors(dataset, images, 0.001), seed=0)
    return DataLoader(
        mapper,
        batch_size=_BATCH,
        sampler=StreamSampler(stream, 0, _MEASURED * _BATCH),
        num_workers=_WORKERS,
        collate_fn=list,
        worker_init_fn=lambda worker: torch.set_num_threads(1),
    )


def _many_images(content: dict[str, Any]) -> AnnotationFile:
    """The images of ``content`` again and again, with their objects, under new ids."""
    images, annotations = [], []
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    for image_id in range(_IMAGES):
        image = content["images"][image_id % len(content["images"])]
        images.append({**image, "id": image_id})
        annotations += [{**annotation, "image_id": image_id} for annotation in of_image[image["id"]]]
    return AnnotationFile.of_records(
        "in memory", images=images, annotations=annotations, categories=content["categories"]
    )
