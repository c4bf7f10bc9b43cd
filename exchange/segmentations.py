"""Checks of segmentations that nobody vouches for, before C code that trusts them allocates and reads.

The objects' outlines and run lengths are looked at many at a time: there are 1.27 million of them in LVIS.
"""

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]
MAX_PIXELS = (1 << 29) - 1  # of an image: the runs of its masks then fit in the six characters below
_MAX_LENGTH = (
    1 << 20
)  # numbers or characters of one segmentation, far beyond what an annotator or a network draws
# COCO's rasteriser takes about 100 bytes for each pixel along an outline.
_MAX_OUTLINE = 1 << 19
_BATCH = 1 << 18  # numbers that are looked at at once
_MAX_RUN_CHARACTERS = 6


class BadSegmentation(Exception):
    """``index``: place of the object; the text says what its segmentation is or has."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


def check_segmentations(segmentations: Iterable[tuple[int, Any]], sizes: _Ints) -> None:
    """Raises BadSegmentation for what are neither polygons nor run lengths of the object's image.

    Polygons are lists of x, y in turn, near the image; one of fewer than three points encloses nothing but is allowed.
    Run lengths are those of COCO, compressed or not, and add up to the image.

    Args:
        segmentations: JSON values, each after the place of its object.
        sizes: int64 (N, 2), height and width of each object's image, from 1 to ``MAX_PIXELS`` pixels.
    """
    polygons, runs = _Polygons(sizes), _RunLengths(sizes)
    for index, segmentation in segmentations:
        try:
            (runs if isinstance(segmentation, dict) else polygons).add(index, segmentation)
        except (TypeError, OverflowError) as error:
            raise BadSegmentation(index, "holds something else than numbers in their place") from error
    polygons.check()
    runs.check()


def enclosing(polygons: Iterable[list[float]]) -> list[list[float]]:
    """The polygons of three points or more: COCO's functions take one of two points for a box."""
    return [polygon for polygon in polygons if len(polygon) >= 6]


def in_reach(low: npt.NDArray[Any], high: npt.NDArray[Any], sizes: _Ints) -> npt.NDArray[np.bool_]:
    """Which extents, (N, 2) of x, y each, lie no further outside of their image than it is large; NaN does not."""
    extent = sizes[:, ::-1]
    inside: npt.NDArray[np.bool_] = np.all((low >= -extent) & (high <= 2 * extent), axis=1)
    return inside


class _Polygons:
    def __init__(self, sizes: _Ints) -> None:
        self._sizes = sizes
        self._start()

    def _start(self) -> None:
        self._numbers, self._lengths, self._owners = array("d"), array("q"), array("q")

    def add(self, index: int, segmentation: Any) -> None:
        if not isinstance(segmentation, list):
            raise BadSegmentation(index, "is neither a list of polygons nor run lengths")
        total = 0
        for polygon in segmentation:
            length = len(polygon)
            total += length
            if length % 2 or total > _MAX_LENGTH:
                what = (
                    f"more than {_MAX_LENGTH} numbers" if length % 2 == 0 else "an x without a y in a polygon"
                )
                raise BadSegmentation(index, f"has {what}")
            self._numbers.fromlist(polygon)
            if length:
                self._lengths.append(length // 2)
                self._owners.append(index)
        if len(self._numbers) > _BATCH:
            self.check()

    def check(self) -> None:
        if not self._owners:
            return
        points = np.array(self._numbers).reshape(-1, 2)
        owners, ends = np.array(self._owners), np.cumsum(self._lengths)
        starts = np.concatenate([[0], ends[:-1]])
        low, high = (extreme.reduceat(points, starts, axis=0) for extreme in (np.minimum, np.maximum))
        good = in_reach(low, high, self._sizes[owners])
        if not good.all():
            raise BadSegmentation(
                int(owners[good.argmin()]),
                "lies further outside of its image than that is large, or holds NaN",
            )
        steps = np.abs(points[1:] - points[:-1]).max(axis=1, initial=0)
        steps[starts[1:] - 1] = 0  # from one polygon to the next
        closing = np.abs(points[ends - 1] - points[starts]).max(axis=1)
        outlines = np.add.reduceat(np.append(steps, 0), starts) + closing
        per_object = np.bincount(owners - owners[0], weights=outlines)
        if per_object.max() > _MAX_OUTLINE:
            raise BadSegmentation(
                int(owners[0] + per_object.argmax()), f"has outlines of more than {_MAX_OUTLINE} pixels"
            )
        self._start()


class _RunLengths:
    def __init__(self, sizes: _Ints) -> None:
        self._sizes = sizes
        self._start()

    def _start(self) -> None:
        self._texts = bytearray()
        self._ends, self._owners = array("q"), array("q")

    def add(self, index: int, segmentation: dict[str, Any]) -> None:
        height, width = self._sizes[index].tolist()
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width] or not all(type(extent) is int for extent in size):
            raise BadSegmentation(
                index, f"has run lengths without the size of its image, [{height}, {width}]"
            )
        if not isinstance(counts, str | list) or not counts or len(counts) > _MAX_LENGTH:
            raise BadSegmentation(index, f"has no 'counts' of 1 to {_MAX_LENGTH} runs or characters")
        if isinstance(counts, list):
            runs = np.array(array("q", counts))
            if runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
                raise self._not_adding_up(index)
            return
        if not counts.isascii():
            raise self._not_adding_up(index)
        self._texts += counts.encode()
        self._ends.append(len(self._texts))
        self._owners.append(index)
        if len(self._texts) > _BATCH:
            self.check()

    def check(self) -> None:
        """Decodes compressed runs: five bits a character and one that says that more follow, the lowest first; from
        the fourth run on what is written is the difference to the run before the last."""
        if not self._owners:
            return
        owners, text_ends = np.array(self._owners), np.array(self._ends)
        bits = np.frombuffer(self._texts, dtype=np.uint8) - np.uint8(48)
        is_last = bits < 32
        good = np.logical_and.reduceat(bits < 64, np.append(0, text_ends[:-1])) & is_last[text_ends - 1]
        ends = np.flatnonzero(is_last).astype(np.int32)
        first = np.append(0, np.searchsorted(ends, text_ends[:-1]))  # run of each text
        if good.all():
            starts = np.append(np.int32(0), ends[:-1] + 1)
            length = ends - starts + 1
            good = np.maximum.reduceat(length, first) <= _MAX_RUN_CHARACTERS
        if good.all():
            totals = self._totals(bits, starts, length, first)
            pixels = self._sizes[owners].prod(axis=1)
            good = totals == pixels
        if not good.all():
            raise self._not_adding_up(int(owners[good.argmin()]))
        self._start()

    def _not_adding_up(self, index: int) -> BadSegmentation:
        height, width = self._sizes[index].tolist()
        return BadSegmentation(index, f"has runs that do not add up to its {height} x {width} pixels")

    @staticmethod
    def _totals(
        bits: npt.NDArray[np.uint8],
        starts: npt.NDArray[np.int32],
        length: npt.NDArray[np.int32],
        first: _Ints,
    ) -> _Ints:
        """Pixels of each text's runs, -1 where one is negative."""
        values = np.zeros(len(starts), dtype=np.int32)
        for place in range(int(length.max())):
            has = length > place
            values[has] |= (bits[starts[has] + place] & 31).astype(np.int32) << (5 * place)
        values -= (values >> (5 * length - 1)) << (5 * length)  # the highest bit is the sign
        # Every other run is summed up, in a column of its own and over all texts at once: a text's first row
        # takes away what the text before it came to.
        counts = np.diff(np.append(first, len(values)))
        gaps = (
            np.cumsum(counts % 2) - counts % 2
        )  # empty slots before each text, so that it begins with a row
        slots = np.arange(len(values)) + np.repeat(gaps, counts)
        table = np.zeros((int(slots[-1]) // 2 + 1, 2), dtype=np.int64)
        table.reshape(-1)[slots] = values
        table.reshape(-1)[slots[first]] = 0  # nothing is added to the first run
        rows = slots[first] // 2
        table[rows[1:]] -= np.add.reduceat(table, rows, axis=0)[:-1]
        runs = table.cumsum(axis=0).reshape(-1)[slots]
        runs[first] = values[first]
        return np.where(np.minimum.reduceat(runs, first) < 0, -1, np.add.reduceat(runs, first))
