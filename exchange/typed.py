"""Dataclasses out of JSON that nobody vouches for."""

import dataclasses
import functools
import re
import reprlib
import types
import typing
from typing import Any, TypeVar

from exchange import files
from exchange.errors import UserError

T = TypeVar("T")
# Half a character, which JSON can hold and no file or terminal takes.
_SURROGATE = re.compile("[\\ud800-\\udfff]")


def read_object(path: str, what: str, version: int, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of ``what``; raises UserError where its ``format`` is not ``version``."""
    content = files.read_json(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != version:
        raise UserError(f"{path} has {what} format {found!r}, this version reads {version}: {remedy}")
    return typing.cast(dict[str, Any], content)


def from_record(kind: type[T], record: Any) -> T:
    """An instance of the dataclass ``kind`` with the values of the JSON object ``record``.

    Keys that are no fields are left out; numbers must be finite and whole ones have 64 bits, texts must be Unicode
    without a zero byte. Raises ValueError that names the field which is missing or of another type.
    """
    if not isinstance(record, dict):
        raise ValueError(f"it holds {type(record).__name__} instead of an object")
    values = {}
    for name, (hint, required) in _fields(typing.cast(Any, kind)).items():
        if name in record:
            if not _fits(record[name], hint):
                raise ValueError(f"{name!r} is {reprlib.repr(record[name])}")
            values[name] = record[name]
        elif required:
            raise ValueError(f"{name!r} is missing")
    return kind(**values)


@functools.cache
def _fields(kind: type[Any]) -> dict[str, tuple[Any, bool]]:
    """Type and whether there is no default, of each field."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
    }


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is tuple:  # a list in JSON
        whole = isinstance(value, list) and len(value) == len(arguments)
        return whole and all(map(_fits, value, arguments))
    if origin is dict:  # keys are strings in JSON, whatever they stand for
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint in (int, float):
        fits = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return fits and abs(value) < 1 << 63  # infinity and NaN are not
    if hint is str:
        return isinstance(value, str) and "\0" not in value and _SURROGATE.search(value) is None
    return isinstance(value, hint)
