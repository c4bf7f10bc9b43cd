"""Instance pools that other projects wrote: X-Paste's JSON, a folder per class, a COCO file with images."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from diSegmenter.annotate import MaskCleaner
from exchange import files
from exchange.annotations import read_annotations
from exchange.errors import UserError
from exchange.images import MAX_SIDE, BadImage, read_rgba, read_upright
from exchange.segmentations import enclosing

_IMAGE_ENDINGS = (".png", ".webp")
_PICTURES = 4  # of a COCO file, in memory: as many as threads look at
# X-Paste takes what is above 128 and its largest part when it loads an instance that is not cropped yet.
_XPASTE_CLEANING = MaskCleaner(floor=128, largest_component=True)


@dataclass(frozen=True)
class ForeignInstance:
    """An object of another pool: ``load`` gives uint8 RGBA (H, W, 4) and may raise BadImage."""

    origin: str
    category_id: int
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class ForeignPool:
    """As many instances of another pool; ``instance(k)`` makes the k-th when its turn comes."""

    count: int
    instance: Callable[[int], ForeignInstance]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ForeignInstance]:
        return map(self.instance, range(self.count))


def read_xpaste(path: str, root: str, category_ids: Sequence[int]) -> ForeignPool:
    """The pool in X-Paste's ``LVIS_instance_pools.json``: lists of paths by class index.

    ``*path`` is an RGBA image that is cropped and clean, ``image|mask`` a picture and its mask, any other
    path an RGBA image as a segmentation method left it. Relative paths are below ``root``. Raises UserError
    for another format or a class that the data set does not have.
    """
    content = files.read_json(path)
    if not isinstance(content, dict) or not all(isinstance(paths, list) for paths in content.values()):
        raise UserError(f"{path} is not a pool of X-Paste: it must map class indices to lists of paths")
    listed = []
    for key, paths in content.items():
        if not key.isdecimal() or int(key) >= len(category_ids):
            raise UserError(
                f"{path} has class index {key!r}, but the data set's are 0 to {len(category_ids) - 1}: give "
                "the annotations of the data set that the pool was made for"
            )
        for entry in paths:
            if not isinstance(entry, str):
                raise UserError(f"{path} lists {entry!r} for class {key}, which is not a path: correct it")
            listed.append((category_ids[int(key)], entry))

    def instance(number: int) -> ForeignInstance:
        category_id, entry = listed[number]
        return ForeignInstance(entry, category_id, _xpaste_loader(entry, root))

    return ForeignPool(len(listed), instance)


def read_folders(root: str, category_ids: Mapping[str, int]) -> ForeignPool:
    """The pool in a folder with a folder of RGBA images for each class, called by its name (with %2F for a slash)."""
    names = files.list_dir(root)
    unknown = [name for name in names if unquote(name) not in category_ids]
    if unknown or not names:
        what = f"{unknown[0]!r}, which is no category" if unknown else "no folder"
        raise UserError(
            f"{root} holds {what}: it must hold one folder per class, called by the class's name, and nothing else"
        )
    listed = [
        (category_ids[unquote(name)], files.join(root, name, file))
        for name in names
        for file in files.list_dir(files.join(root, name))
        if file.lower().endswith(_IMAGE_ENDINGS)
    ]

    def instance(number: int) -> ForeignInstance:
        category_id, path = listed[number]
        return ForeignInstance(path, category_id, lambda: read_rgba(path))

    return ForeignPool(len(listed), instance)


def read_coco(path: str, image_root: str, category_ids: Mapping[str, int]) -> ForeignPool:
    """The objects of a COCO or LVIS file, each cut out of its picture by its mask; crowds are left out.

    They come picture by picture, of which the last few are kept: one of LVIS has a dozen objects.
    """
    annotations = read_annotations(path)
    names, read = annotations.file_names(), _reader()
    order = np.argsort(annotations.object_images, kind="stable")
    order = order[~annotations.crowd[order]]
    category_names = [category["name"] for category in annotations.categories]
    for name in (category_names[index] for index in np.unique(annotations.object_classes[order])):
        if name not in category_ids:
            raise UserError(
                f"{path} has the category {name!r}, which the data set lacks: rename or remove it"
            )

    def instance(number: int) -> ForeignInstance:
        index = order[number]
        image = int(annotations.object_images[index])
        object_id = annotations.object_id(index)
        try:
            picture = files.join(image_root, names[image])
        except UserError as error:
            raise UserError(f"{path}: annotation {object_id}: {error}") from error
        height, width = annotations.image_sizes[image].tolist()
        load = _object_loader(read, picture, (height, width), annotations.segmentation(index))
        category_id = category_ids[category_names[annotations.object_classes[index]]]
        return ForeignInstance(f"{path}#{object_id}", category_id, load)

    return ForeignPool(len(order), instance)


def _xpaste_loader(entry: str, root: str) -> Callable[[], np.ndarray]:
    def path(name: str) -> str:
        return name if name.startswith("/") or "://" in name else f"{root.rstrip('/')}/{name}"

    if entry.startswith("*"):
        return lambda: read_rgba(path(entry[1:]))
    picture, _, mask = entry.partition("|")

    def load() -> np.ndarray:
        image = read_rgba(path(picture))
        alpha = read_rgba(path(mask))[..., 0] if mask else image[..., 3]
        if alpha.shape != image.shape[:2]:
            raise BadImage(f"{entry}: image and mask differ in size")
        return np.dstack([image[..., :3], _XPASTE_CLEANING(alpha)[0]])

    return load


def _reader() -> Callable[[str, tuple[int, int]], np.ndarray]:
    """:func:`read_upright`, which has the last few pictures at hand and reads none for two threads at once."""
    kept, locks = functools.lru_cache(_PICTURES)(read_upright), dict[str, Lock]()

    def read(path: str, size: tuple[int, int]) -> np.ndarray:
        with locks.setdefault(path, Lock()):
            return kept(path, size)

    return read


def _object_loader(
    read: Callable[[str, tuple[int, int]], np.ndarray], path: str, size: tuple[int, int], segmentation: Any
) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        if max(size) > MAX_SIDE:
            raise BadImage(f"{path} has a side above {MAX_SIDE} pixels")
        alpha = np.zeros(size, np.uint8)
        if isinstance(segmentation, dict):
            runs = segmentation
            if isinstance(runs["counts"], list):
                runs = coco_mask.frPyObjects(runs, *size)
            alpha = coco_mask.decode(runs) * np.uint8(255)
        else:
            polygons = enclosing(segmentation or [])
            points = [np.rint(polygon).astype(np.int32).reshape(-1, 1, 2) for polygon in polygons]
            cv2.fillPoly(alpha, points, 255)
        return np.dstack([read(path, size), alpha])

    return load
