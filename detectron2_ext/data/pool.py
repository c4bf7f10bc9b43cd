"""The pool of objects to paste, as training reads it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import cv2
import numpy as np

from detectron2_ext.data.cutouts import Cutouts
from detectron2_ext.data.decode import BadImage
from exchange.errors import UserError

CACHE_BYTES = 256 * 2**20  # of decoded cut-outs that each loader process keeps


class InstancePool:
    """Instances to paste, each with its class.

    Args:
        cutouts: where they are kept.
        category_ids: sorted ids of the data set, (C,), which give the class indices.
        crop: whether :meth:`load` gives the object's tight box; otherwise all that is kept of it.
        cache_bytes: how much of decoded cut-outs to keep in memory.

    Raises:
        UserError: an instance is of a category that the data set lacks.

    Attributes:
        categories: class index of each instance, int64 (N,).
        rounds: see :class:`Cutouts`.
    """

    def __init__(
        self,
        cutouts: Cutouts,
        category_ids: np.ndarray,
        *,
        crop: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        unknown = np.setdiff1d(cutouts.category_ids, category_ids)
        if len(unknown):
            raise UserError(
                f"the pool has instances of category {unknown[0]}, which DATASETS.TRAIN does not know: use a "
                "pool of this data set"
            )
        self.categories = np.searchsorted(category_ids, cutouts.category_ids).astype(np.int64)
        self.rounds = cutouts.rounds
        self._cutouts, self._crop = cutouts, crop
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_limit, self._cache_used = cache_bytes, 0

    def __len__(self) -> int:
        return len(self.categories)

    def name(self, index: int) -> str:
        """Path of an instance."""
        return self._cutouts.name(index)

    def column(self, name: str) -> np.ndarray:
        """A number that the index has for each instance (``clip_white``, ``area``, …): float64 (N,).

        Raises UserError where there is no such number.
        """
        return self._cutouts.column(name)

    def load(self, index: int) -> np.ndarray:
        """The cut-out of an instance: RGBA uint8 (h, w, 4), alpha 0 outside the object; to be read only.

        Raises BadImage where a file is missing or does not decode, or no pixel belongs to the object.
        """
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        cutout = self._object(index)
        self._cache[index] = cutout
        self._cache_used += cutout.nbytes
        while self._cache_used > self._cache_limit and len(self._cache) > 1:
            self._cache_used -= self._cache.popitem(last=False)[1].nbytes
        return cutout

    def _object(self, index: int) -> np.ndarray:
        cutout = self._cutouts.read(index)
        left, top, width, height = cv2.boundingRect(np.ascontiguousarray(cutout[..., 3]))
        if width == 0:
            raise BadImage(f"{self.name(index)}: no pixel belongs to the object")
        if self._crop:
            cutout = np.ascontiguousarray(cutout[top : top + height, left : left + width])
        return cutout

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_cache_used": 0}
