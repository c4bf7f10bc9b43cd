"""BSGAL's score (Zhu et al., 2024) of each instance of a pool by itself, by a network that has been trained.

The cosine of two gradients of classification losses in the same parameters: that of an instance, pasted alone into a
training image of its class, and the mean over real objects of the class. In both the objects' own boxes are the
proposals.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectron2_ext.data.mapper import PasteInfo, TrainMapper
from detectron2_ext.data.sampler import RANKED, generator
from detectron2_ext.data.view import PASTED, SceneReader
from detectron2_ext.engine.gradient_cache import GradientCache, flat_gradient
from detectron2_ext.paste.pasters import PoolPaster
from detectron2_ext.paste.pool import InstancePool
from detectron2_ext.paste.sources import ImagesOfClasses
from detectron2_ext.paste.triple import TestImages
from exchange.images import BadImage

_ATTEMPTS = 10  # views, in one of which the instance has to be seen


class GradientRank:
    """Scores the instances of a pool, those of one class after those of another.

    A score depends on the network, the seed and the instance's name, not on what else is in the pool.

    Args:
        network: in evaluation mode; gradients of ``parameters`` alone are taken.
        draws: of the classes that a loss counts; the network draws from it.
        reader: gives a random view of a training image.
        images: data set indices of the training images.
        pool: the instances.
        paste: pastes instance ``k`` into the ``k``-th scene.
        num_tests: real objects' images of a class, at most.
        through_backbone: whether some of ``parameters`` are the backbone's.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Sequence[nn.Parameter],
        draws: torch.Generator,
        reader: SceneReader,
        images: np.ndarray,
        pool: InstancePool,
        paste: PoolPaster,
        seed: int,
        num_tests: int,
        *,
        through_backbone: bool = False,
        bgr: bool = False,
    ) -> None:
        self._network, self._parameters, self._draws = network, list(parameters), draws
        self._reader, self._pool, self._paste, self._seed = reader, pool, paste, seed
        self._num_tests, self._through_backbone = num_tests, through_backbone
        self._of_class = ImagesOfClasses(reader.dataset)
        self._tests = TestImages(reader, seed, lambda k: True)
        self._mapper = TrainMapper(reader, images, [], seed, bgr)
        self.skipped: list[str] = []

    def __call__(self) -> Iterator[tuple[int, float]]:
        """Place in the pool and score of each instance; NaN where its class has no real object, it could not be pasted,
        or a gradient is zero."""
        shown = set(self._of_class.shown().tolist())
        for class_index in np.unique(self._pool.categories).tolist():
            cache = self._mean_of_tests(class_index) if class_index in shown else None
            for index in np.flatnonzero(self._pool.categories == class_index).tolist():
                yield index, math.nan if cache is None else self._score(index, cache)

    def _mean_of_tests(self, class_index: int) -> GradientCache:
        cache = GradientCache(self._parameters, None)
        for k in range(self._num_tests):
            drawn = self._tests(k, [PasteInfo(class_index, (0, 0, 0, 0))], self.skipped)
            if drawn:
                cache.update(self._gradient(self._mapper.network_input(*drawn), k))
        return cache

    def _score(self, index: int, cache: GradientCache) -> float:
        digest = hashlib.blake2b(self._pool.instance(index).encode(), digest_size=4).digest()
        number = int.from_bytes(digest, "big")
        record = self._pasted(index, generator(self._seed, RANKED, number))
        score = None if record is None else cache.cosine(self._gradient(record, number))
        return math.nan if score is None else score

    def _pasted(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        """A training image of the instance's class with it pasted, as its only object; None where no view shows it."""
        for _ in range(_ATTEMPTS):
            image = self._of_class.draw(int(self._pool.categories[index]), rng)
            try:
                scene = self._reader(image, rng)
            except BadImage as error:
                self.skipped.append(str(error))
                continue
            self._paste(scene, index, rng, self.skipped)
            scene.objects = [shown for shown in scene.objects if shown.source == PASTED]
            if scene.objects:
                return self._mapper.network_input(scene, image)
        return None

    def _gradient(self, record: dict[str, Any], number: int) -> Tensor:
        """Of the classification losses of a record's objects; ``number``: of the draw of the classes that count."""
        self._draws.manual_seed(number)
        losses = self._network.class_losses([record], self._through_backbone)
        return flat_gradient(torch.stack(list(losses.values())).sum(), self._parameters)
