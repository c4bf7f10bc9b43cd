"""What the objects of the training set look like: mean image features of each class, made once for a run."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from exchange import files
from exchange.annotations import AnnotationFile
from exchange.errors import UserError
from exchange.images import BadImage, read_upright
from exchange.layout import RunLayout
from exchange.locks import in_turn
from exchange.segmentations import enclosing
from exchange.threads import side_by_side

MAX_UNREADABLE_SHARE = 0.05
_STRETCH = 256  # images whose objects are in memory at once
_log = logging.getLogger(__name__)

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]
Frame = Callable[[np.ndarray, np.ndarray, Sequence[int]], np.ndarray]
Means = dict[int, np.ndarray]


@dataclass(frozen=True)
class RealObjects:
    """Some objects of a training set, in the order of its images.

    ``chosen``: their places among the annotations, (K,); ``boxes``: XYWH in whole pixels, inside of the image, (K, 4).
    """

    annotations: AnnotationFile
    image_folder: str
    chosen: np.ndarray
    boxes: np.ndarray

    @classmethod
    def of_each_class(
        cls, annotations: AnnotationFile, image_folder: str, most: int, seed: int
    ) -> RealObjects:
        """``most`` objects of each class at most, drawn by ``seed``, whatever there is of other classes.

        Crowds, and objects without a box inside of their image, are none.
        """
        sizes = annotations.image_sizes[annotations.object_images]
        corners = np.concatenate(
            [annotations.boxes[:, :2], annotations.boxes[:, :2] + annotations.boxes[:, 2:]], 1
        )
        corners = np.clip(np.nan_to_num(corners), 0, np.tile(sizes[:, ::-1], 2))
        low, high = np.floor(corners[:, :2]).astype(int), np.ceil(corners[:, 2:]).astype(int)
        boxes = np.concatenate([low, high - low], 1)
        usable = (boxes[:, 2:] > 0).all(1) & ~annotations.crowd
        chosen = []
        for class_index, category_id in enumerate(annotations.category_ids.tolist()):
            members = np.flatnonzero(usable & (annotations.object_classes == class_index))
            if len(members) > most:
                members = np.random.default_rng([seed, category_id]).choice(members, most, replace=False)
            chosen.append(members)
        together = np.concatenate([np.zeros(0, int), *chosen])
        order = np.lexsort([together, annotations.object_images[together]])
        return cls(annotations, image_folder, together[order], boxes[together[order]])

    @property
    def category_ids(self) -> np.ndarray:
        """Of each: int64 (K,)."""
        return self.annotations.category_ids[self.annotations.object_classes[self.chosen]]

    def digest(self, settings: Sequence[Any]) -> bytes:
        """32 bytes for what they are and look like, and for ``settings``."""
        names, images = self.annotations.file_names(), self.annotations.object_images[self.chosen].tolist()
        known = hashlib.sha256(json.dumps(list(settings)).encode())
        rows = zip(self.chosen.tolist(), images, self.category_ids.tolist(), self.boxes.tolist(), strict=True)
        for index, image, category_id, box in rows:
            row = [names[image], category_id, box, self.annotations.segmentation(index)]
            known.update(json.dumps(row).encode())
        return known.digest()

    def by_image(self) -> Iterator[list[int]]:
        """The numbers of the objects of one image after the other, from 0 to K - 1."""
        images = self.annotations.object_images[self.chosen].tolist()
        for _, group in itertools.groupby(range(len(images)), images.__getitem__):
            yield list(group)

    def opacity(self, number: int) -> np.ndarray:
        """Of an object in its image: uint8 (H, W), 0 or 255; of its box where it has no outline."""
        index = int(self.chosen[number])
        size = self.annotations.image_sizes[self.annotations.object_images[index]].tolist()
        segmentation = self.annotations.segmentation(index)
        mask = np.zeros(size, np.uint8)
        if isinstance(segmentation, list):
            if polygons := enclosing(segmentation):
                mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))
        elif segmentation is not None:
            if isinstance(segmentation["counts"], list):
                segmentation = coco_mask.frPyObjects(segmentation, *size)
            mask = coco_mask.decode(segmentation)
        if not mask.any():
            x, y, width, height = self.boxes[number]
            mask[y : y + height, x : x + width] = 1
        return mask * np.uint8(255)


def read_or_make(
    layout: RunLayout,
    objects: RealObjects,
    key: bytes,
    frame: Frame,
    encode: Encode,
    batch_size: int,
    workers: int,
) -> Means:
    """The mean features of each category by its id, from the pool's file of them if it is about ``key``.

    Of several processes one makes that file and the others wait for it.
    """
    with in_turn(layout, "real_features"):
        found = _read(layout.real_features(), key)
        if found is None:
            found = mean_features(objects, frame, encode, batch_size, workers)
            arrays = {
                "key": np.frombuffer(key, np.uint8),
                "category_ids": np.array(list(found), np.int64),
                "means": np.stack(list(found.values())) if found else np.zeros((0, 0), np.float32),
            }
            files.write_bytes(layout.real_features(), save(arrays))
    return found


def _read(path: str, key: bytes) -> Means | None:
    if not files.exists(path):
        return None
    try:
        arrays = load(files.read_bytes(path))
        if arrays["key"].tobytes() == key:
            return dict(zip(arrays["category_ids"].tolist(), arrays["means"], strict=True))
        _log.info("%s is about other objects or settings: it is made again", path)
    except (SafetensorError, KeyError, ValueError) as error:
        _log.warning("%s is damaged (%s): it is made again", path, error)
    return None


def mean_features(objects: RealObjects, frame: Frame, encode: Encode, batch_size: int, workers: int) -> Means:
    """Mean of the unit features of each category's objects, float32 (D,), by category id.

    A category whose images do not decode has none. Raises UserError where more than 5 % of the images do not.
    """
    root = f"{objects.image_folder.rstrip('/')}/" if objects.image_folder else ""
    names, groups = objects.annotations.file_names(), list(objects.by_image())
    features: list[np.ndarray] = []
    unreadable: list[str] = []

    def framed(group: list[int]) -> list[np.ndarray] | str:
        image = objects.annotations.object_images[objects.chosen[group[0]]]
        path = f"{root}{names[image]}"
        try:
            pixels = read_upright(path, tuple(objects.annotations.image_sizes[image].tolist()))
        except BadImage as error:
            return str(error)
        return [frame(pixels, objects.opacity(number), objects.boxes[number].tolist()) for number in group]

    known: list[int] = []
    with (
        side_by_side(workers) as threads,
        tqdm(desc="real objects", total=len(objects.chosen)) as progress,
    ):
        for start in range(0, len(groups), _STRETCH):
            stretch = groups[start : start + _STRETCH]
            pictures = []
            for group, found in zip(stretch, threads.map(framed, stretch), strict=True):
                if isinstance(found, str):
                    unreadable.append(found)
                else:
                    pictures += found
                    known += group
            for at in range(0, len(pictures), batch_size):
                features.append(encode(pictures[at : at + batch_size]))
                progress.update(len(features[-1]))
    _check_readable(unreadable, len(groups))
    if not features:
        return {}
    together, category_ids = np.concatenate(features), objects.category_ids[known]
    means = {int(c): together[category_ids == c].mean(0, dtype=np.float64) for c in np.unique(category_ids)}
    return {category_id: mean.astype(np.float32) for category_id, mean in means.items()}


def _check_readable(unreadable: list[str], images: int) -> None:
    if len(unreadable) > MAX_UNREADABLE_SHARE * images:
        raise UserError(
            f"{len(unreadable)} of {images} training images cannot be compared with ({unreadable[0]}): put them where "
            'DATASETS.TRAIN has them, or set SEGMENTER.SIMILARITY_MODEL to ""'
        )
    if unreadable:
        _log.warning("%d training images are not compared with, such as %s", len(unreadable), unreadable[0])
