"""The training mapper with copy-paste against the same mapper without: milliseconds per image, on one core.

The other side decodes, resizes and rasterises, and pastes nothing. The work: 640-pixel training size, JPEGs of
640 x 480 with 12 polygons each, 1 or 2 of 200 instances of 512 x 512 pixels pasted into each.

``ours`` decodes what stage 2 stores, a cut-out with its halves; ``ours_cut_outs_alone`` what it stored before there
were halves, ``ours_images_from_png`` image and mask as they are generated, what the reference reads.
"""

from __future__ import annotations

import cProfile
import itertools
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tabulate import tabulate

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.mapper import TrainMapper
from detectron2_ext.data.view import ResizeCropFlip, SceneReader
from detectron2_ext.paste.composite import RandomMirror, basic
from detectron2_ext.paste.pasters import PoolPaster
from detectron2_ext.paste.plan import Scattered, StatisticalSize, UniformDraws, class_sizes
from detectron2_ext.paste.pool import ImagesWithMasks, IndexedCutouts, InstancePool
from exchange import files
from exchange.cutouts import encode_cutout, without_halves
from exchange.layout import RunLayout
from exchange.pool_index import PoolInstance, write_index
from tools.benchmarks import times_as_much

TARGET = 1.2
_CLASSES, _IMAGES, _OBJECTS, _INSTANCES = 1203, 20, 12, 200
_TRAIN_SIZE, _SCALE_RANGE = 640, (0.1, 2.0)
_TURNS, _PER_TURN = 9, 60
_PROFILED, _PROFILE_ROWS = 300, 12


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


@_one_thread()
def measure(device: str) -> dict[str, Any]:
    """Medians of turns in which every image is made by all sides, one after the other; always on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        sides = _sides(Path(folder))
        for mapper, k in itertools.product(sides.values(), range(_INSTANCES)):
            mapper[k, k % _IMAGES]  # fills the cache of files
        turns = [_turn(sides, start=turn * _PER_TURN) for turn in range(_TURNS)]
    milliseconds = {name: statistics.median(turn[name] for turn in turns) for name in sides}
    ratio = statistics.median(turn["ours"] / turn["other"] for turn in turns)
    return {
        **milliseconds,
        "unit": "milliseconds per image",
        **times_as_much(ratio, 1.0, TARGET),
    }


@_one_thread()
def profile(device: str) -> str:
    """Milliseconds of the processor per image, by function, of three sides; the profiler's own cost is included."""
    columns = {"other": "no paste", "ours_images_from_png": "paste from PNG", "ours": "paste"}
    table: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = _sides(Path(folder))
        for side, column in columns.items():
            for k in range(_INSTANCES):
                sides[side][k, k % _IMAGES]
            profiler = cProfile.Profile(time.process_time)
            profiler.enable()
            for k in range(_PROFILED):
                sides[side][k, k % _IMAGES]
            profiler.disable()
            for (path, _, function), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():
                name = f"{Path(path).stem}.{function}" if path != "~" else function.strip("{}<>")
                row = table.setdefault(name, dict.fromkeys(columns.values(), 0.0))
                row[column] += 1000 * own / _PROFILED
    rows = sorted(table.items(), key=lambda item: -max(item[1].values()))
    shown, rest = rows[:_PROFILE_ROWS], rows[_PROFILE_ROWS:]
    shown.append(("all others", {c: sum(row[c] for _, row in rest) for c in columns.values()}))
    shown.append(("together", {c: sum(row[c] for _, row in rows) for c in columns.values()}))
    return tabulate(
        [[name, *row.values()] for name, row in shown],
        ["ms per image", *columns.values()],
        tablefmt="github",
        floatfmt=".2f",
    )


def _turn(sides: dict[str, TrainMapper], start: int) -> dict[str, float]:
    """Milliseconds per image of each side over the same images."""
    seconds = dict.fromkeys(sides, 0.0)
    for k in range(start, start + _PER_TURN):
        for name, mapper in sides.items():
            before = time.perf_counter()
            mapper[k, k % _IMAGES]
            seconds[name] += time.perf_counter() - before
    return {name: 1000 * total / _PER_TURN for name, total in seconds.items()}


def _sides(folder: Path) -> dict[str, TrainMapper]:
    rng = np.random.default_rng(0)
    layout = RunLayout(str(folder / "run"))
    rows = [write_instance(rng, layout, number) for number in range(_INSTANCES)]
    write_index(layout, 0, rows)
    files.write_json(str(folder / "train.json"), write_images(rng, folder))
    dataset = DetectionDataset.read(str(folder / "train.json"), str(folder))
    reader = SceneReader(dataset, ResizeCropFlip(_TRAIN_SIZE, _SCALE_RANGE))
    images = dataset.trainable_images()

    def mapper(pool: InstancePool | None) -> TrainMapper:
        if pool is None:
            return TrainMapper(reader, images, [], seed=0)
        draws = UniformDraws(len(pool), seed=0, origin=0)
        plan = Scattered(pool.categories, draws, StatisticalSize(class_sizes(dataset)))
        return TrainMapper(reader, images, [PoolPaster(pool, plan, [RandomMirror()], [basic])], seed=0)

    before = RunLayout(str(folder / "before"))
    for row in rows:
        data = files.read_bytes(layout.pool(row.cutout))
        files.write_bytes(before.pool(row.cutout), without_halves(data))
    write_index(before, 0, rows)
    pools = {
        "ours": IndexedCutouts(layout, [0]),
        "ours_cut_outs_alone": IndexedCutouts(before, [0]),
        "ours_images_from_png": ImagesWithMasks.of_run(layout, [0]),
    }
    sides = {name: mapper(InstancePool(cutouts, dataset.category_ids)) for name, cutouts in pools.items()}
    return {"other": mapper(None), **sides}


def write_instance(rng: np.random.Generator, layout: RunLayout, number: int) -> PoolInstance:
    """A soft-edged ellipse of noise, as image, mask and cut-out."""
    category_id = int(rng.integers(1, _CLASSES + 1))
    name = layout.instance_name(0, category_id, number)
    axes = rng.integers(60, 220, size=2).tolist()
    alpha = np.zeros((512, 512), np.uint8)
    cv2.ellipse(alpha, (256, 256), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    alpha = cv2.GaussianBlur(alpha, (7, 7), 2)
    image = _noise(rng, 512, 512, cell=16)
    box = list(cv2.boundingRect(alpha))
    for path, pixels in ((layout.raw(name), image[..., ::-1]), (layout.segmented(name), alpha)):
        files.write_bytes(path, cv2.imencode(".png", pixels)[1].tobytes())
    files.write_bytes(layout.cutout(name), encode_cutout(image, alpha, box))
    return PoolInstance(
        file=name,
        round=0,
        category_id=category_id,
        width=512,
        height=512,
        bbox=box,
        area=int(np.count_nonzero(alpha)),
        segmentation=[],
        objects=1,
        clip_white=30.0,
        clip_black=30.0,
        reason="",
        seed=number,
        model="",
        prompt="",
        cutout=layout.cutout_name(name),
    )


def write_images(rng: np.random.Generator, folder: Path) -> dict[str, Any]:
    """Noise with polygons of 24 corners; gives the annotation file's content."""
    images, annotations = [], []
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for image_id in range(_IMAGES):
        name = f"{image_id:012}.jpg"
        cv2.imwrite(str(folder / name), _noise(rng, 480, 640, cell=10))
        images.append({"id": image_id, "file_name": name, "width": 640, "height": 480})
        for _ in range(_OBJECTS):
            center, radius = rng.uniform((50, 50), (590, 430)), rng.uniform(10, 80)
            corners = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            corners = np.clip(corners, 0, (639, 479))
            low, high = corners.min(axis=0), corners.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, _CLASSES + 1)),
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "segmentation": [corners.reshape(-1).tolist()],
                }
            )
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, _CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    coarse = rng.integers(0, 255, (height // cell, width // cell, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
