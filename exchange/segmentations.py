"""Checks of segmentations that nobody vouches for, before C code that trusts them allocates and reads.

They become flat arrays on the way, many at a time: there are 1.27 million of them in LVIS.
"""

from array import array
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]
MAX_PIXELS = (1 << 29) - 1  # of an image: the runs of its masks then fit in the six characters below
# Numbers or characters of one segmentation: far beyond what an annotator or a network draws.
_MAX_LENGTH = 1 << 20
# COCO's rasteriser takes about 100 bytes for each pixel along an outline.
_MAX_OUTLINE = 1 << 19
_MAX_RUN_CHARACTERS = 6


class BadSegmentation(Exception):
    """``index``: place of the object; the text says what its segmentation is or has."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


NONE, POLYGONS, COMPRESSED, RUNS = range(4)  # kinds of a segmentation


@dataclass(frozen=True)
class Segmentations:
    """The segmentations of N objects as flat arrays, in their order.

    ``kinds``: uint8 (N,). ``polygon_counts``: int64 (N,), polygons of each object. ``polygon_lengths``: int64 (P,),
    numbers of each polygon. ``coordinates``: float64. ``text_lengths`` and ``run_counts``: int64 (N,), characters and
    runs of each object. ``text``: uint8. ``runs``: int64.
    """

    kinds: npt.NDArray[np.uint8]
    polygon_counts: _Ints
    polygon_lengths: _Ints
    coordinates: npt.NDArray[np.float64]
    text_lengths: _Ints
    text: npt.NDArray[np.uint8]
    run_counts: _Ints
    runs: _Ints


def gather(segmentations: Iterable[tuple[int, Any]], sizes: _Ints) -> Segmentations:
    """The arrays of JSON values. Raises BadSegmentation for what are neither polygons nor run lengths of the object's
    image.

    Polygons are lists of x, y in turn, near the image; one of fewer than three points encloses nothing but is allowed.
    Run lengths are those of COCO, compressed or not, and add up to the image.

    Args:
        segmentations: JSON values, each after the place of its object, in order; an object without one is left out.
        sizes: int64 (N, 2), height and width of each object's image, from 1 to ``MAX_PIXELS`` pixels.
    """
    polygons, runs = _Polygons(sizes), _RunLengths(sizes)
    kinds = np.full(len(sizes), NONE, dtype=np.uint8)
    for index, segmentation in segmentations:
        try:
            if isinstance(segmentation, dict):
                kinds[index] = runs.add(index, segmentation)
            else:
                polygons.add(index, segmentation)
                kinds[index] = POLYGONS
        except (TypeError, OverflowError) as error:
            raise BadSegmentation(index, "holds something else than numbers in their place") from error
    counts, lengths, coordinates = polygons.checked()
    text_lengths, text, run_counts, plain = runs.checked()
    return Segmentations(kinds, counts, lengths, coordinates, text_lengths, text, run_counts, plain)


_Polygon = TypeVar("_Polygon", bound=Sized)


def enclosing(polygons: Iterable[_Polygon]) -> list[_Polygon]:
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
            self._lengths.append(length)
            self._owners.append(index)

    def checked(self) -> tuple[_Ints, _Ints, npt.NDArray[np.float64]]:
        numbers, lengths, owners = np.array(self._numbers), np.array(self._lengths), np.array(self._owners)
        some = lengths > 0
        if some.any():
            self._check(numbers.reshape(-1, 2), lengths[some] // 2, owners[some])
        return np.bincount(owners, minlength=len(self._sizes)), lengths, numbers

    def _check(self, points: npt.NDArray[np.float64], lengths: _Ints, owners: _Ints) -> None:
        ends = np.cumsum(lengths)
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
        per_object = np.bincount(owners, weights=outlines)
        if per_object.max() > _MAX_OUTLINE:
            raise BadSegmentation(
                int(per_object.argmax()), f"has outlines of more than {_MAX_OUTLINE} pixels"
            )


class _RunLengths:
    def __init__(self, sizes: _Ints) -> None:
        self._sizes = sizes
        self._texts, self._text_lengths = bytearray(), np.zeros(len(sizes), dtype=np.int64)
        self._runs, self._run_counts = array("q"), np.zeros(len(sizes), dtype=np.int64)

    def add(self, index: int, segmentation: dict[str, Any]) -> int:
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
            self._runs.fromlist(counts)
            self._run_counts[index] = len(counts)
            return RUNS
        if not counts.isascii():
            raise self._not_adding_up(index)
        self._texts += counts.encode()
        self._text_lengths[index] = len(counts)
        return COMPRESSED

    def checked(self) -> tuple[_Ints, npt.NDArray[np.uint8], _Ints, _Ints]:
        text = np.frombuffer(bytes(self._texts), dtype=np.uint8)
        if len(text):
            self._check(text)
        return self._text_lengths, text, self._run_counts, np.array(self._runs)

    def _check(self, text: npt.NDArray[np.uint8]) -> None:
        """Decodes compressed runs: five bits a character and one that says that more follow, the lowest first; from
        the fourth run on what is written is the difference to the run before the last."""
        owners = np.flatnonzero(self._text_lengths)
        text_ends = np.cumsum(self._text_lengths[owners])
        bits = text - np.uint8(48)
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
        gaps = np.cumsum(counts % 2) - counts % 2  # empty slots before a text, so that it begins with a row
        slots = np.arange(len(values)) + np.repeat(gaps, counts)
        table = np.zeros((int(slots[-1]) // 2 + 1, 2), dtype=np.int64)
        table.reshape(-1)[slots] = values
        table.reshape(-1)[slots[first]] = 0  # nothing is added to the first run
        rows = slots[first] // 2
        table[rows[1:]] -= np.add.reduceat(table, rows, axis=0)[:-1]
        runs = table.cumsum(axis=0).reshape(-1)[slots]
        runs[first] = values[first]
        return np.where(np.minimum.reduceat(runs, first) < 0, -1, np.add.reduceat(runs, first))
