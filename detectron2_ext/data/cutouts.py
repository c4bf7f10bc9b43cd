"""Where the instances of a pool are kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from detectron2_ext.data.decode import BadImage, decode_rgba, read_gray, read_rgba
from exchange import files
from exchange.annotations import read_annotations
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex


class Cutouts(Protocol):
    """Where the instances of a pool are kept.

    ``category_ids``: int (N,), as in annotation files; ``rounds``: int (N,), the round that each instance was
    made in, -1 where nobody knows.
    """

    category_ids: np.ndarray
    rounds: np.ndarray

    def name(self, index: int) -> str:
        """Path of an instance, to name it to a person."""

    def column(self, name: str) -> np.ndarray:
        """See :meth:`InstancePool.column`."""

    def read(self, index: int) -> np.ndarray:
        """RGBA uint8 (h, w, 4) of an instance with whatever surrounds it. Raises BadImage."""


class IndexedCutouts:
    """The cut-outs that stage 2 has cropped, through the columnar index of some rounds of a run."""

    def __init__(self, layout: RunLayout, rounds: Sequence[int]) -> None:
        self._index = PoolIndex(layout, rounds)
        self.category_ids, self.rounds = self._index.category_ids, self._index.rounds

    def name(self, index: int) -> str:
        return self._index.name(index)

    def column(self, name: str) -> np.ndarray:
        if name not in ("clip_white", "clip_black", "area"):
            raise UserError(
                f"INPUT.INST_POOL_WEIGHT is {name!r}: choose class, clip_white, clip_black or area"
            )
        values = self._index.column(name).astype(np.float64)
        if not np.isfinite(values).all():
            raise UserError(
                f"INPUT.INST_POOL_WEIGHT is {name}, which some instances of the pool lack: choose class"
            )
        return values

    def read(self, index: int) -> np.ndarray:
        try:
            data = self._index.read(index)
        except UserError as error:
            raise BadImage(str(error)) from error
        return decode_rgba(data, self.name(index))


class ImagesWithMasks:
    """Whole images and their alpha masks, as stage 1 and stage 2 write them side by side.

    ``names``: file names below ``raw_folder`` and below ``alpha_folder``.
    """

    def __init__(
        self,
        raw_folder: str,
        alpha_folder: str,
        names: Sequence[str],
        category_ids: np.ndarray,
        rounds: np.ndarray,
    ) -> None:
        self._raw_folder, self._alpha_folder, self._names = raw_folder, alpha_folder, list(names)
        self.category_ids, self.rounds = category_ids, rounds

    @classmethod
    def of_run(cls, layout: RunLayout, rounds: Sequence[int]) -> ImagesWithMasks:
        """What the index of some rounds lists, uncropped."""
        index = PoolIndex(layout, rounds)
        names = index.column("file").tolist()
        return cls(layout.pool("raw"), layout.pool("segmented"), names, index.category_ids, index.rounds)

    @classmethod
    def of_annotations(cls, annotation_file: str, folder: str) -> ImagesWithMasks:
        """What a file in LVIS or COCO format lists, one object an image, in ``folder``/raw and /segmented."""
        pool = read_annotations(annotation_file)
        names = pool.file_names()
        return cls(
            files.join(folder, "raw"),
            files.join(folder, "segmented"),
            [names[annotation["image_id"]] for annotation in pool.annotations],
            np.array([annotation["category_id"] for annotation in pool.annotations], dtype=np.int64),
            np.full(len(pool.annotations), -1),
        )

    def name(self, index: int) -> str:
        return files.join(self._raw_folder, self._names[index])

    def column(self, name: str) -> np.ndarray:
        raise UserError(f"this pool has no index, hence no {name}: set INPUT.INST_POOL_WEIGHT class")

    def read(self, index: int) -> np.ndarray:
        image = read_rgba(self.name(index))
        alpha = read_gray(files.join(self._alpha_folder, self._names[index]))
        if alpha.shape != image.shape[:2]:
            raise BadImage(f"{self.name(index)}: its alpha mask has another size")
        image[..., 3] = alpha
        return image


class JoinedCutouts:
    """Several pools as one, in their order."""

    def __init__(self, parts: Sequence[Cutouts]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part.category_ids) for part in parts)])
        self.category_ids = np.concatenate([part.category_ids for part in parts])
        self.rounds = np.concatenate([part.rounds for part in parts])

    def name(self, index: int) -> str:
        part, offset = self._locate(index)
        return part.name(offset)

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([part.column(name) for part in self._parts])

    def read(self, index: int) -> np.ndarray:
        part, offset = self._locate(index)
        return part.read(offset)

    def _locate(self, index: int) -> tuple[Cutouts, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number], index - int(self._starts[number])
