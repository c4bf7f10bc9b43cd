"""What a pool gives to one image: which instances, how large, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.draws import Draws
from detectron2_ext.data.object_size import SizeRule
from detectron2_ext.data.scene import Scene


class Placement(NamedTuple):
    """One instance to paste.

    ``area_root``: its box gets ``area_root² H W`` pixels, None for as many as the cut-out has; ``corner``:
    its top left pixel (x, y), None for anywhere.
    """

    pool_index: int
    area_root: float | None
    corner: tuple[int, int] | None


class PastePlan(Protocol):
    """Decides what to paste into an image."""

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator) -> Iterator[Placement]:
        """The placements for ``scene``, the ``k``-th image of the stream, from back to front."""


class Scattered:
    """Instances by a drawing rule, their sizes by another, anywhere in the image."""

    def __init__(self, categories: np.ndarray, draws: Draws, size: SizeRule) -> None:
        self._categories, self._draws, self._size = categories, draws, size

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator) -> Iterator[Placement]:
        classes = np.array([scene_object.class_index for scene_object in scene.objects], dtype=np.int64)
        for index in self._draws(k, classes, rng).tolist():
            area_root = self._size(int(self._categories[index]), scene.size, rng)
            yield Placement(index, area_root, None)


class LikeAnotherImage:
    """``reference`` (X-Paste): classes, sizes and places are those of the objects of another training image.

    Its layout is scaled to 0.8 to 1 times what fits the scene, and put at a random place in it. An object
    whose class the pool lacks is left out.
    """

    def __init__(self, categories: np.ndarray, dataset: DetectionDataset, images: np.ndarray) -> None:
        self._dataset, self._images = dataset, images
        self._by_class = np.argsort(categories, kind="stable")
        self._first = np.searchsorted(categories[self._by_class], np.arange(dataset.num_classes + 1))

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator) -> Iterator[Placement]:
        record = self._dataset.record(int(rng.choice(self._images)))
        height, width = scene.size
        scale = rng.uniform(0.8, 1.0) * min(height / record.height, width / record.width)
        room = np.array([width - scale * record.width, height - scale * record.height])
        boxes = record.boxes * scale + np.tile(room * rng.random(2), 2)
        for box, class_index in zip(boxes[~record.crowd], record.classes[~record.crowd], strict=True):
            first, last = self._first[class_index : class_index + 2].tolist()
            if first == last:
                continue
            area_root = float(np.sqrt((box[2] - box[0]) * (box[3] - box[1]) / (height * width)))
            index = int(self._by_class[rng.integers(first, last)])
            yield Placement(index, area_root, (int(box[0]), int(box[1])))
