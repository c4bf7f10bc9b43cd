"""What gradient selection (BSGAL; Zhu et al., 2024) looks at: images with and without pasted objects, and test images.

The three come from one draw: the image before anything was pasted has the same crop and flip, and the test image is
another training image that holds a class of those just pasted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectron2_ext.data.mapper import PasteInfo, TrainMapper
from detectron2_ext.data.sampler import TEST_IMAGE, generator
from detectron2_ext.data.view import Scene, SceneReader
from detectron2_ext.paste.pool import InstancePool
from detectron2_ext.paste.sources import ImagesOfClasses
from exchange.images import BadImage

_ATTEMPTS = 10  # views, of which one has to show an object of its class


@dataclass(frozen=True)
class TestSchedule:
    """Which images of the stream get a test image.

    Args:
        batch_size: images of all processes in an iteration.
        world_size: number of processes.
        most: test images of a process in an iteration, whose first images get them.
        every: of so many iterations one has test images, from iteration 0 on.
    """

    __test__ = False  # not a test class
    batch_size: int
    world_size: int
    most: int
    every: int

    def __call__(self, k: int) -> bool:
        iteration, place = divmod(k, self.batch_size)
        return iteration % self.every == 0 and place // self.world_size < self.most


class TestImages:
    """Draws the test image of an image: a class of those pasted, each alike, and a training image that shows it.

    Args:
        reader: gives a random view of an image with its objects.
        seed: of the run.
        wanted: whether the ``k``-th image of the stream gets one.
    """

    __test__ = False  # not a test class

    def __init__(self, reader: SceneReader, seed: int, wanted: Callable[[int], bool]) -> None:
        self._reader, self._seed, self._wanted = reader, seed, wanted
        self._of_class = ImagesOfClasses(reader.dataset)

    def __call__(self, k: int, pasted: Sequence[PasteInfo], skipped: list[str]) -> tuple[Scene, int] | None:
        """A view with the objects of that class alone, and the data set index of its image.

        None where nothing was pasted, or no view drawn shows such an object. ``skipped`` takes a sentence about each
        file that cannot be read.
        """
        classes = np.intersect1d([info.class_index for info in pasted], self._of_class.shown())
        if not len(classes) or not self._wanted(k):
            return None
        rng = generator(self._seed, TEST_IMAGE, k)
        for _ in range(_ATTEMPTS):
            class_index = int(rng.choice(classes))
            index = self._of_class.draw(class_index, rng)
            try:
                scene = self._reader(index, rng)
            except BadImage as error:
                skipped.append(str(error))
                continue
            scene.objects = [shown for shown in scene.objects if shown.class_index == class_index]
            if scene.objects:
                return scene, index
        return None


class TripleMapper:
    """As :class:`~detectron2_ext.data.mapper.TrainMapper`, with what the decision about pasted objects needs.

    Args:
        mapper: of the images with pasted objects.
        tests: draws the test images.
        pool: that is pasted from; None where there is none.
    """

    def __init__(self, mapper: TrainMapper, tests: TestImages, pool: InstancePool | None) -> None:
        self._mapper, self._tests, self._pool = mapper, tests, pool

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """The mapper's dictionary, and in it ``original``: the input without pasted objects; ``test``: that of the
        test image, or None; ``pasted_instances``: (name, category id) of each pasted instance of the pool."""
        k, index = item
        skipped: list[str] = []
        scene, index = self._mapper.readable_scene(k, index, skipped)
        original = Scene(scene.image.copy(), list(scene.objects))
        pasted = self._mapper.paste(scene, k, skipped)
        drawn = self._tests(k, pasted, skipped)
        return self._mapper.entry(scene, index, k, pasted, skipped) | {
            "original": self._mapper.network_input(original, index),
            "test": drawn and self._mapper.network_input(*drawn),
            "pasted_instances": [self._named(info) for info in pasted if info.pool_index >= 0],
        }

    def _named(self, info: PasteInfo) -> tuple[str, int]:
        assert self._pool is not None  # which the instance is of
        return self._pool.instance(info.pool_index), self._mapper.category_id(info.class_index)
