"""The pool of objects to paste: where it lies on disk, and how training reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import cv2
import numpy as np

from detectron2_ext.data.images import decode_rgba, read_gray, read_rgba
from exchange import files
from exchange.annotations import read_annotations
from exchange.cutouts import read_half
from exchange.errors import UserError
from exchange.images import BadImage
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex
from exchange.pool_rank import KINDS, read_rank


class Cutouts(Protocol):
    """Where the instances of a pool are kept.

    ``category_ids``: int (N,), as in annotation files.
    """

    category_ids: np.ndarray

    def name(self, index: int) -> str:
        """Path of an instance, to name it to a person."""

    def instance(self, index: int) -> str:
        """File name of its generated image, which it keeps however the pool is packed or moved."""

    def column(self, name: str) -> np.ndarray:
        """See :meth:`InstancePool.column`."""

    def size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of an instance that fills what is kept of it; None where only the pixels can tell."""

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """RGBA uint8 (h, w, 4) of an instance with whatever surrounds it. Raises BadImage.

        One of a known size may come halved, once or more, as long as it is not smaller than ``size``.
        """


class IndexedCutouts:
    """The cut-outs that stage 2 has cropped, through the columnar index of some rounds of a run.

    ``left_out``: file names of instances that are not in it.
    """

    def __init__(
        self, layout: RunLayout, rounds: Sequence[int], left_out: Collection[str] = frozenset()
    ) -> None:
        self._layout, self._sources = layout, list(rounds)
        self._index = PoolIndex(layout, rounds, left_out=left_out)
        self.category_ids = self._index.category_ids

    def name(self, index: int) -> str:
        return self._index.name(index)

    def instance(self, index: int) -> str:
        return self._index.file(index)

    def column(self, name: str) -> np.ndarray:
        if name in KINDS:
            return read_rank(self._layout, self._sources, name, self._index.column("file").tolist())
        if name not in ("clip_white", "clip_black", "area"):
            raise UserError(
                f"INPUT.INST_POOL_WEIGHT is {name!r}: choose class, clip_white, clip_black, area or a rank "
                f"({', '.join(KINDS)})"
            )
        values = self._index.column(name).astype(np.float64)
        if not np.isfinite(values).all():
            raise UserError(
                f"INPUT.INST_POOL_WEIGHT is {name}, which some instances of the pool lack: choose class"
            )
        return values

    def size(self, index: int) -> tuple[int, int]:
        return self._index.size(index)

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        name, known = self.name(index), self.size(index)
        try:
            data = self._index.read(index)
            half = read_half(data, known, size) if size else None
        except (UserError, ValueError) as error:
            raise BadImage(f"{name}: {error}") from error
        if half is not None:
            return half
        pixels = decode_rgba(data, name)
        if pixels.shape[:2] != known:
            found = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise BadImage(f"{name}: {found} pixels, but by the index {known[1]} x {known[0]}")
        return pixels


Clean = Callable[[np.ndarray], np.ndarray]  # RGBA uint8 (h, w, 4) to the same


class ImagesWithMasks:
    """Whole images and their alpha masks, as stage 1 and stage 2 write them side by side.

    ``names``: file names below ``raw_folder`` and below ``alpha_folder``. ``clean``: changes each instance, if given.
    """

    def __init__(
        self,
        raw_folder: str,
        alpha_folder: str,
        names: Sequence[str],
        category_ids: np.ndarray,
        clean: Clean | None = None,
    ) -> None:
        self._raw_folder, self._alpha_folder, self._names = raw_folder, alpha_folder, list(names)
        self.category_ids, self._clean = category_ids, clean

    @classmethod
    def of_run(
        cls, layout: RunLayout, rounds: Sequence[int], left_out: Collection[str] = frozenset()
    ) -> ImagesWithMasks:
        """What the index of some rounds lists, uncropped, but for the instances called ``left_out``."""
        index = PoolIndex(layout, rounds, left_out=left_out)
        names = index.column("file").tolist()
        return cls(layout.pool("raw"), layout.pool("segmented"), names, index.category_ids)

    @classmethod
    def of_annotations(cls, annotation_file: str, folder: str, clean: Clean | None = None) -> ImagesWithMasks:
        """What a file in LVIS or COCO format lists, one object an image, in ``folder``/raw and /segmented."""
        pool = read_annotations(annotation_file)
        names = pool.file_names()
        return cls(
            files.join(folder, "raw"),
            files.join(folder, "segmented"),
            [names[image] for image in pool.object_images.tolist()],
            pool.category_ids[pool.object_classes],
            clean,
        )

    def name(self, index: int) -> str:
        return files.join(self._raw_folder, self._names[index])

    def instance(self, index: int) -> str:
        return self._names[index]

    def column(self, name: str) -> np.ndarray:
        raise UserError(f"this pool has no index, hence no {name}: set INPUT.INST_POOL_WEIGHT class")

    def size(self, index: int) -> None:
        return None

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        image = read_rgba(self.name(index))
        alpha = read_gray(files.join(self._alpha_folder, self._names[index]))
        if alpha.shape != image.shape[:2]:
            raise BadImage(f"{self.name(index)}: its alpha mask has another size")
        image[..., 3] = alpha
        return image if self._clean is None else self._clean(image)


_OPAQUE = 128  # of 255: X-Paste takes a pixel above this for the object's


def opaque_part(image: np.ndarray, only_largest: bool) -> np.ndarray:
    """An instance without what is not clearly the object's, as X-Paste loads those that nobody has cropped yet.

    Alpha up to 128 becomes 0; with ``only_largest``, so does what lies outside of the outer contour of the largest
    area. RGBA uint8 (h, w, 4) from the same.
    """
    inside = (image[..., 3] > _OPAQUE).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if only_largest and contours:
        largest = max(contours, key=cv2.contourArea)
        inside = cv2.drawContours(np.zeros_like(inside), [largest], 0, 1, cv2.FILLED)
    return np.dstack([image[..., :3], image[..., 3] * inside])


class JoinedCutouts:
    """Several pools as one, in their order.

    An instance of the second has ``1:`` before its name, since the pools of two runs name theirs alike.
    """

    def __init__(self, parts: Sequence[Cutouts]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part.category_ids) for part in parts)])
        self.category_ids = np.concatenate([part.category_ids for part in parts])

    def name(self, index: int) -> str:
        part, offset = self._locate(index)
        return part.name(offset)

    def instance(self, index: int) -> str:
        number = self._number(index)
        part, offset = self._locate(index)
        return f"{number}:{part.instance(offset)}" if number else part.instance(offset)

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([part.column(name) for part in self._parts])

    def size(self, index: int) -> tuple[int, int] | None:
        part, offset = self._locate(index)
        return part.size(offset)

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        part, offset = self._locate(index)
        return part.read(offset, size)

    def _locate(self, index: int) -> tuple[Cutouts, int]:
        number = self._number(index)
        return self._parts[number], index - int(self._starts[number])

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1


class InstancePool:
    """Instances to paste, each with its class.

    Args:
        cutouts: where they are kept.
        category_ids: sorted ids of the data set, (C,), which give the class indices.
        crop: whether :meth:`load` gives the object's tight box; otherwise all that is kept of it.

    Raises:
        UserError: an instance is of a category that the data set lacks.

    Attributes:
        categories: class index of each instance, int64 (N,).
    """

    def __init__(self, cutouts: Cutouts, category_ids: np.ndarray, *, crop: bool = True) -> None:
        unknown = np.setdiff1d(cutouts.category_ids, category_ids)
        if len(unknown):
            raise UserError(
                f"the pool has instances of category {unknown[0]}, which DATASETS.TRAIN does not know: use a "
                "pool of this data set"
            )
        self.categories = np.searchsorted(category_ids, cutouts.category_ids).astype(np.int64)
        self._cutouts, self._crop = cutouts, crop
        self._decoded: tuple[int, np.ndarray] | None = None  # the last one whose size was to be found out

    def __len__(self) -> int:
        return len(self.categories)

    def name(self, index: int) -> str:
        """Path of an instance."""
        return self._cutouts.name(index)

    def instance(self, index: int) -> str:
        """Name of an instance, the same as long as it is in the pool."""
        return self._cutouts.instance(index)

    def column(self, name: str) -> np.ndarray:
        """A number of each instance: of the index (``clip_white``, ``area``, …), or a rank, NaN where nobody knows it:
        float64 (N,).

        Raises UserError where there is no such number.
        """
        return self._cutouts.column(name)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the cut-out of an instance. Raises BadImage as :meth:`load`."""
        known = self._cutouts.size(index)
        if known is None:
            self._decoded = index, self._object(index)
            known = self._decoded[1].shape[:2]
        return known

    def load(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """The cut-out of an instance: RGBA uint8 (h, w, 4), alpha 0 outside the object; to be read only.

        For ``size`` (height, width) it may come halved, once or more, as long as it is not smaller than that:
        :func:`~detectron2_ext.paste.composite.resize_cutout` makes the same of it.

        Raises BadImage where a file is missing, does not decode or is of another size than its index says, or no
        pixel belongs to the object.
        """
        if self._decoded and self._decoded[0] == index:
            return self._decoded[1]
        known = self._cutouts.size(index) is not None
        return self._cutouts.read(index, size) if known else self._object(index)

    def _object(self, index: int) -> np.ndarray:
        cutout = self._cutouts.read(index)
        left, top, width, height = cv2.boundingRect(np.ascontiguousarray(cutout[..., 3]))
        if width == 0:
            raise BadImage(f"{self.name(index)}: no pixel belongs to the object")
        if self._crop:
            cutout = np.ascontiguousarray(cutout[top : top + height, left : left + width])
        return cutout
