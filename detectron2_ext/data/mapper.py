"""From a place in the training stream to what the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.images import read_image
from detectron2_ext.data.sampler import PASTE, REPLACEMENT, VIEW, generator
from detectron2_ext.data.view import Scene, SceneReader
from exchange.images import BadImage

_REPLACEMENTS = 20  # attempts to find an image that can be read in place of one that cannot


@dataclass(frozen=True)
class PasteInfo:
    """One pasted object, for reports.

    ``box``: XYXY pixels of the object, which may reach over the border. ``pool_index``: its place in the pool, -1
    where there is none.
    """

    class_index: int
    box: tuple[int, int, int, int]
    pool_index: int = -1


class Paster(Protocol):
    """Adds objects to a scene."""

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator, skipped: list[str]) -> list[PasteInfo]:
        """Change ``scene``, the ``k``-th image of the stream, in place; say what was added.

        ``rng`` belongs to this image. A file that cannot be read is left out; ``skipped`` takes a sentence.
        """


class TrainMapper:
    """The training images as a map from ``(k, data set index)`` to Detectron2's dictionary of one input.

    Everything random depends on the seed and on ``k`` alone. An image that cannot be read is replaced by
    another one, a cut-out that cannot be read is not pasted; ``skipped`` says so.

    Args:
        reader: gives a random view of an image with its objects.
        images: data set indices that may replace an image that cannot be read.
        pasters: add objects, one after the other.
        seed: of the run.
        bgr: whether the network wants the channels in the order BGR (INPUT.FORMAT).
    """

    def __init__(
        self,
        reader: SceneReader,
        images: np.ndarray,
        pasters: Sequence[Paster],
        seed: int,
        bgr: bool = False,
    ) -> None:
        self._reader, self._images, self._pasters = reader, images, list(pasters)
        self._seed, self._bgr = seed, bgr

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """``image``: uint8 (3, h, w); ``instances``: see :class:`~detectron2_ext.structures.Instances`;
        ``height``, ``width``, ``file_name``, ``image_id``, ``stream_index``; ``paste_info``: list of
        :class:`PasteInfo`; ``skipped``: a sentence about each file that could not be used."""
        k, index = item
        skipped: list[str] = []
        scene, index = self.readable_scene(k, index, skipped)
        return self.entry(scene, index, k, self.paste(scene, k, skipped), skipped)

    def paste(self, scene: Scene, k: int, skipped: list[str]) -> list[PasteInfo]:
        """Adds to ``scene``, in place, what the ``k``-th image of the stream gets; ``skipped`` takes sentences."""
        rng = generator(self._seed, PASTE, k)
        return [info for paster in self._pasters for info in paster(scene, k, rng, skipped)]

    def entry(
        self, scene: Scene, index: int, k: int, pasted: list[PasteInfo], skipped: list[str]
    ) -> dict[str, Any]:
        """What :meth:`__getitem__` gives, of a scene with what was pasted into it."""
        return self.network_input(scene, index) | {
            "stream_index": k,
            "paste_info": pasted,
            "skipped": skipped,
        }

    def network_input(self, scene: Scene, index: int) -> dict[str, Any]:
        """The part of it that the network and messages are about; ``index``: of the image in the data set."""
        record = self._reader.dataset.record(index)
        return {
            "image": _to_tensor(scene.image, self._bgr),
            "instances": scene.instances(),
            "height": scene.size[0],
            "width": scene.size[1],
            "file_name": record.file_name,
            "image_id": record.image_id,
        }

    def category_id(self, class_index: int) -> int:
        """As annotation files have it."""
        return int(self._reader.dataset.category_ids[class_index])

    def readable_scene(self, k: int, index: int, skipped: list[str]) -> tuple[Scene, int]:
        """The view that the ``k``-th image of the stream shows, and its data set index: ``index``, or that of the image
        in its place, where its file cannot be read.

        Raises BadImage where none can.
        """
        for attempt in range(_REPLACEMENTS):
            try:
                return self._reader(index, generator(self._seed, VIEW, k)), index
            except BadImage as error:
                skipped.append(str(error))
                index = int(generator(self._seed, REPLACEMENT, k, attempt).choice(self._images))
        raise BadImage(f"{_REPLACEMENTS} images in a row cannot be read, the last because {skipped[-1]}")


@dataclass(frozen=True)
class TestTransform:
    """An image as the network is tested on, resized and whole.

    The shorter side becomes ``min_size`` unless the longer one would then exceed ``max_size`` (Detectron2's
    ``ResizeShortestEdge``, with Pillow's bilinear filter as there).
    """

    __test__ = False  # not a test class
    min_size: int
    max_size: int
    bgr: bool = False

    def __call__(self, image: np.ndarray) -> Tensor:
        """uint8 (3, h, w) of uint8 RGB (H, W, 3)."""
        height, width = self._resized(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return _to_tensor(image, self.bgr)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        scale = self.min_size / min(height, width)
        if scale * max(height, width) > self.max_size:
            scale = self.max_size / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)


class TestMapper:
    """The images of a data set as the network is tested on: upright, as ``transform`` makes them."""

    __test__ = False  # not a test class

    def __init__(self, dataset: DetectionDataset, transform: TestTransform) -> None:
        self.dataset, self._transform = dataset, transform

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image``: uint8 (3, h, w), resized; ``height`` and ``width`` of the original, ``file_name``,
        ``image_id``. An image that cannot be read has no ``image`` but ``skipped``, as in training."""
        record = self.dataset.record(index)
        described = {
            "height": record.height,
            "width": record.width,
            "file_name": record.file_name,
            "image_id": record.image_id,
        }
        try:
            image = read_image(record.file_name, (record.height, record.width))
        except BadImage as error:
            return {**described, "skipped": [str(error)]}
        return {**described, "image": self._transform(image), "skipped": []}


def _to_tensor(image: np.ndarray, bgr: bool) -> Tensor:
    """uint8 (3, h, w) of an image uint8 RGB (h, w, 3), in the same memory where the order of channels
    allows."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1] if bgr else image)).permute(2, 0, 1)
