"""Which training image Copy-Paste takes objects from, and which of them (INPUT.SCP_TYPE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.view import REAL, Scene, SceneObject


class Source(NamedTuple):
    """An image to copy from: its data set index, and the classes of objects that may be copied (None: all)."""

    index: int
    classes: np.ndarray | None = None

    def objects(self, scene: Scene) -> list[SceneObject]:
        """Those objects of ``scene``, a view of the image, that may be copied."""
        return [o for o in scene.objects if self.classes is None or o.class_index in self.classes]


class SourceRule(Protocol):
    """Chooses the image that is copied from."""

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Source | None:
        """For ``scene``, which is pasted into; None if no image will do."""


class AnyImage:
    """Each of ``images``, data set indices, alike."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Source:
        return Source(int(rng.choice(self._images)))


class ImagesOfClasses:
    """The images that show each class, crowds not counted."""

    def __init__(self, dataset: DetectionDataset) -> None:
        real = ~dataset.crowd
        pairs = np.stack([dataset.classes[real], dataset.image_of_object[real]], axis=1)
        classes, self._images = np.unique(pairs, axis=0).T
        self._first = np.searchsorted(classes, np.arange(dataset.num_classes + 1))

    def shown(self) -> np.ndarray:
        """Class indices that an image shows: int64."""
        return np.flatnonzero(np.diff(self._first))

    def draw(self, class_index: int, rng: np.random.Generator) -> int:
        """An image of a class that one shows, each alike."""
        return int(self._images[rng.integers(*self._first[class_index : class_index + 2])])


class ClassFirst:
    """``cas``, ``the_cls``, ``the_cls_img`` (X-Paste): a class uniformly, then an image that shows it.

    Args:
        classes: class indices to draw from, each shown by an image.
        only_it: whether objects of other classes in that image stay there.
    """

    def __init__(self, images: ImagesOfClasses, classes: Sequence[int] | np.ndarray, only_it: bool) -> None:
        self._images, self._classes, self._only_it = images, np.asarray(classes), only_it

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Source:
        class_index = int(rng.choice(self._classes))
        classes = np.array([class_index]) if self._only_it else None
        return Source(self._images.draw(class_index, rng), classes)


class SharedClass:
    """``in_domain`` (X-Paste): a class of the scene uniformly, then an image that shows it.

    Objects of any class of the scene may be copied; what was pasted into it does not count.
    """

    def __init__(self, images: ImagesOfClasses) -> None:
        self._images = images

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Source | None:
        classes = np.unique([o.class_index for o in scene.objects if o.source == REAL])
        if not len(classes):
            return None
        return Source(self._images.draw(int(rng.choice(classes)), rng), classes)


class ObjectRule(Protocol):
    """Chooses among the objects that may be copied."""

    def __call__(self, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[SceneObject]:
        """Those that are, from back to front."""


def some_objects(objects: Sequence[SceneObject], rng: np.random.Generator) -> list[SceneObject]:
    """A random number of them, from none to all (Simple Copy-Paste)."""
    count = rng.integers(len(objects) + 1)
    return [objects[i] for i in rng.permutation(len(objects))[:count]]


def every_object(objects: Sequence[SceneObject], rng: np.random.Generator) -> list[SceneObject]:
    """All of them (``cas`` and ``in_domain``)."""
    return list(objects)
