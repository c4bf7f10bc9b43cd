"""Fields of many JSON records that nobody vouches for, checked a field at a time in all records at once.

LVIS has 1.27 million annotations: what looks at them one by one takes as long as reading them.
"""

import reprlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from exchange.errors import UserError

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """``column`` makes an array of values; TypeError, ValueError or OverflowError say that one is not ``what``."""

    what: str
    column: Callable[[list[Any]], npt.NDArray[Any]]


def _numbers(code: str, low: int, high: int, values: list[Any]) -> npt.NDArray[Any]:
    """``array`` takes nothing but numbers, for ``q`` whole ones of 64 bits, and takes them fast."""
    numbers = np.array(array(code, values))
    if not ((numbers >= low) & (numbers <= high)).all():  # NaN is neither
        raise ValueError
    return numbers


def _lists(code: str, values: list[Any]) -> npt.NDArray[Any]:
    """The numbers of all lists, one list after the other."""
    numbers = array(code)
    for some in values:
        numbers.fromlist(some)
    return np.array(numbers)


def whole(high: int, low: int = 0) -> Kind:
    """Whole numbers from ``low`` to ``high``, which 64 bits hold."""
    return Kind(f"a whole number from {low} to {high}", partial(_numbers, "q", low, high))


def _boxes(values: list[Any]) -> npt.NDArray[np.float64]:
    if any(len(box) != 4 for box in values):
        raise ValueError
    return _lists("d", values).reshape(-1, 4)


def _texts(values: list[Any]) -> npt.NDArray[Any]:
    if b"\0" in "".join(values).encode():
        raise ValueError
    return np.empty(0)


def _text_lists(values: list[Any]) -> npt.NDArray[Any]:
    if not all(isinstance(texts, list) for texts in values):
        raise ValueError
    return _texts(["".join(texts) for texts in values])


def _frequencies(values: list[Any]) -> npt.NDArray[Any]:
    if not all(value in ("r", "c", "f") for value in values):
        raise ValueError
    return np.empty(0)


AREA = Kind("a number of pixels from 0 up", partial(_numbers, "d", 0, 2**63))
BOX = Kind("a list of four numbers", _boxes)
FREQUENCY = Kind("'r', 'c' or 'f'", _frequencies)
ID = whole(2**63 - 1)
IDS = Kind("a list of whole numbers", partial(_lists, "q"))
TEXT = Kind("a text that UTF-8 holds, without NUL", _texts)
TEXTS = Kind("a list of texts that UTF-8 holds", _text_lists)


class Ids:
    """``ids``: those of one of the lists, int64 (N,), which must differ."""

    def __init__(self, path: str, part: str, pieces: Sequence[_Ints]) -> None:
        self.part = part
        self.ids = np.concatenate([np.empty(0, dtype=np.int64), *pieces])
        self._order = np.argsort(self.ids)
        self._sorted = self.ids[self._order]
        if (self._sorted[1:] == self._sorted[:-1]).any():
            raise UserError(f"{path} lists an id twice in {part!r}: ids must be unique")

    def places(self, named: _Ints) -> _Ints:
        """The place of each id among ``ids``, -1 where it is none of them."""
        found = np.searchsorted(self._sorted, named)
        known = found < len(self.ids)
        known[known] = self._sorted[found[known]] == named[known]
        places = np.full(len(named), -1)
        places[known] = self._order[found[known]]
        return places


class Records:
    """Some records of one of the lists of an annotation file, from the place ``first`` on, checked a field at a time
    in all of them at once. All methods raise UserError that names the first bad record."""

    _SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}

    def __init__(self, path: str, part: str, records: list[Any], first: int = 0) -> None:
        self.records = records
        self._path, self._part, self._first = path, part, first
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise self.error(index, "is no JSON object")

    def error(self, index: int, what: str) -> UserError:
        record, kind = self.records[index], self._SINGULAR[self._part]
        known = isinstance(record, dict) and isinstance(record.get("id"), int)
        name = (
            f"{kind} {str(record['id'])[:40]}" if known else f"record {self._first + index} of {self._part!r}"
        )
        return UserError(f"{self._path}: {name} {what}: correct it or remove the {kind}")

    def check(self, field: str, kind: Kind, required: bool = False) -> npt.NDArray[Any]:
        """The values of ``field`` in the records that have it, all of them where it is ``required``."""
        try:
            return kind.column([record[field] for record in self.records if required or field in record])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            for index, record in enumerate(self.records):
                if field not in record:
                    if required:
                        raise self.error(index, f"has no {field!r}") from error
                elif not _fits(record[field], kind):
                    what = f"{reprlib.repr(record[field])}, which is not {kind.what}"
                    raise self.error(index, f"has {field} {what}") from error
            raise

    def filled(self, field: str, kind: Kind, absent: float) -> npt.NDArray[Any]:
        """The values of ``field`` in all records, ``absent`` in those that lack it."""
        values = self.check(field, kind)
        if len(values) == len(self.records):
            return values
        filled = np.full((len(self.records), *values.shape[1:]), absent, dtype=values.dtype)
        filled[[field in record for record in self.records]] = values
        return filled

    def refer(self, field: str, ids: Ids) -> _Ints:
        """The place in another list of what each record names in ``field``."""
        named = self.check(field, ID, required=True)
        places = ids.places(named)
        if (places < 0).any():
            index = int(places.argmin())
            raise self.error(index, f"has {field} {named[index]}, which is not in {ids.part!r}")
        return places


def _fits(value: Any, kind: Kind) -> bool:
    try:
        kind.column([value])
    except (TypeError, ValueError, OverflowError):
        return False
    return True
