"""A machine for pickles of tensors, arrays and plain values, the only things that it can make.

Python's own and PyTorch's ``weights_only`` one reserve what a file of a few bytes claims to need: a table of 2³¹
entries, a ``bytearray`` or a storage of any length. Here nothing is imported or called for a file but the functions
below, and what is made of it is no larger than itself.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

Storage = Callable[[str, torch.dtype, int], Tensor]
"""Key, type and number of elements of a storage → its elements (N,)."""

_INSTRUCTIONS = 500_000  # about 90 bytes of memory each at most; the largest checkpoints have 150,000
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ARRAY_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}
_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_FIXED: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_MARK, _ARRAY_CLASS = object(), object()


class _Array:
    """An array between its creation and the instruction that fills it; a pickle refers to both as the same."""

    tensor: Tensor | None = None


class PlainUnpickler:
    """Reads one pickle after the other from a stream that lies in memory.

    NumPy arrays become tensors, ordered dictionaries plain ones, parameters their data.

    Args:
        stream: its reads must not reserve more than there is to read (``io.BytesIO``).
        size: bytes of the input; copies of what is in it take at most twice as much.
        storage: finds PyTorch's storages; without it a pickle that has some is refused.
    """

    def __init__(self, stream: BinaryIO, size: int, storage: Storage | None = None) -> None:
        self._stream, self._left, self._storage = stream, 2 * size, storage
        self._functions: dict[str, Callable[[tuple[Any, ...]], Any]] = {
            "collections.OrderedDict": _dictionary,
            "_codecs.encode": self._encode,  # how arrays of protocol 2 hold their bytes …
            "__builtin__.bytes": _no_bytes,  # … and empty ones
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _data_of_parameter,
            "numpy.dtype": _array_type,
        }
        for module in ("numpy.core", "numpy._core"):
            self._functions[f"{module}.multiarray._reconstruct"] = lambda _: _Array()
            self._functions[f"{module}.multiarray.scalar"] = self._scalar
            self._functions[f"{module}.numeric._frombuffer"] = self._from_buffer

    def load(self) -> Any:
        """The next pickle's content; raises pickle.UnpicklingError if it is damaged or holds anything else."""
        stack, memo = _Stack(), {}
        for name, argument in self._instructions():
            if name in _CONSTANTS:
                stack.push(argument)
            elif name in _FIXED:
                stack.push(_FIXED[name]())
            elif name == "MARK":
                stack.push(_MARK)
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack.push(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
            elif name == "TUPLE":
                stack.push(tuple(stack.pop_to_mark()))
            elif name == "LIST":
                stack.push(stack.pop_to_mark())
            elif name == "DICT":
                stack.push(_filled({}, stack.pop_to_mark()))
            elif name in ("APPEND", "APPENDS"):
                items = [stack.pop()] if name == "APPEND" else stack.pop_to_mark()
                stack.top(list).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else stack.pop_to_mark()
                _filled(stack.top(dict), items)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else argument] = stack.top(object)
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                if argument not in memo:
                    raise pickle.UnpicklingError(f"it refers to a value {argument} that it does not have")
                value = memo[argument]
                stack.push(value.tensor if isinstance(value, _Array) and value.tensor is not None else value)
            elif name == "GLOBAL":
                stack.push(self._find(*argument.split(" ", 1)))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.push(self._find(module, attribute))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(arguments, tuple) or not isinstance(function, (FunctionType, MethodType)):
                    raise pickle.UnpicklingError("it calls what is no function")
                stack.push(function(arguments))
            elif name == "BUILD":
                state, value = stack.pop(), stack.pop()
                stack.push(self._built(value, state))
            elif name == "BINPERSID":
                stack.push(self._find_storage(stack.pop()))
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise pickle.UnpicklingError(f"weights have no instruction {name}")
        raise pickle.UnpicklingError("it ends too early")

    def _instructions(self) -> Iterator[tuple[str, Any]]:
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(self._stream)):
                if count == _INSTRUCTIONS:
                    raise pickle.UnpicklingError(f"it has more than {_INSTRUCTIONS} instructions")
                yield opcode.name, argument
        except ValueError as error:  # genops, for what it cannot decode
            raise pickle.UnpicklingError(str(error)) from error

    def _find(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise pickle.UnpicklingError("it wants to load something without a name")
        full = f"{module}.{name}"
        if full == "numpy.ndarray":
            return _ARRAY_CLASS
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if full not in self._functions:
            raise pickle.UnpicklingError(f"it wants to load {full}")
        return self._functions[full]

    def _find_storage(self, identity: Any) -> Tensor:
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count), *views) if (
                self._storage and count >= 0 and views in ([], [None])
            ):
                return self._storage(key, dtype, count)
        raise pickle.UnpicklingError("it refers to something else than a storage")

    def _built(self, value: Any, state: Any) -> Any:
        match value, state:
            case _Array(), (_, tuple(shape), np.dtype() as dtype, bool() | int() as by_columns, content):
                value.tensor = self._array(content, dtype, shape, "F" if by_columns else "C")
                return value.tensor
            case np.dtype(), (_, "<" | "|" | "=", *_):
                return value
            case np.dtype(), _:
                raise pickle.UnpicklingError("it holds arrays of another byte order")
            case dict(), _:
                return value  # what PyTorch notes beside a state dict
        raise pickle.UnpicklingError(f"it sets the state of a {type(value).__name__}")

    def _encode(self, arguments: tuple[Any, ...]) -> bytes:
        match arguments:
            case (str(text), "latin1"):
                self._take(len(text))
                try:
                    return text.encode("latin-1")
                except UnicodeEncodeError as error:
                    raise pickle.UnpicklingError(f"its bytes are none ({error})") from error
        raise pickle.UnpicklingError("it encodes something else than bytes")

    def _scalar(self, arguments: tuple[Any, ...]) -> Tensor:
        match arguments:
            case (np.dtype() as dtype, content):
                return self._array(content, dtype, (), "C")
        raise pickle.UnpicklingError("it holds a number of unknown type")

    def _from_buffer(self, arguments: tuple[Any, ...]) -> Tensor:
        match arguments:
            case (content, np.dtype() as dtype, tuple(shape), "C" | "F" as order):
                return self._array(content, dtype, shape, order)
        raise pickle.UnpicklingError("it holds an array of unknown form")

    def _array(self, content: Any, dtype: np.dtype[Any], shape: tuple[Any, ...], order: Any) -> Tensor:
        if isinstance(content, str):
            content = self._encode((content, "latin1"))
        if not isinstance(content, (bytes, bytearray)):
            raise pickle.UnpicklingError(f"it fills an array with a {type(content).__name__}")
        if not all(type(extent) is int and 0 <= extent < 2**63 for extent in shape):
            raise pickle.UnpicklingError("it holds an array that has no shape")
        if math.prod(shape) * dtype.itemsize != len(content):
            raise pickle.UnpicklingError(f"it holds an array of {len(content)} bytes that has another shape")
        self._take(len(content))
        try:
            return torch.from_numpy(np.ndarray(shape, dtype, bytearray(content), order=order).copy())
        except ValueError as error:  # empty, and yet larger than NumPy can count
            raise pickle.UnpicklingError(str(error)) from error

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it holds the same bytes many times")


class _Stack:
    def __init__(self) -> None:
        self._items: list[Any] = []

    def push(self, item: Any) -> None:
        self._items.append(item)

    def pop(self) -> Any:
        item = self.top(object)
        del self._items[-1]
        return item

    def pop_to_mark(self) -> list[Any]:
        """What was pushed after the last mark."""
        items: list[Any] = []
        while self._items:
            item = self._items.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise pickle.UnpicklingError("it closes what it never opened")

    def top(self, kind: type) -> Any:
        if not self._items or self._items[-1] is _MARK or not isinstance(self._items[-1], kind):
            raise pickle.UnpicklingError(f"it needs a {kind.__name__} where it has none")
        return self._items[-1]


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """``target`` with keys and values that take turns in ``items``."""
    if len(items) % 2 or not all(isinstance(key, (str, int, float, bytes)) for key in items[::2]):
        raise pickle.UnpicklingError("it holds a dictionary without proper keys")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


def _dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    match arguments:
        case ():
            return {}
        case (list(items),) if all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
            return _filled({}, [part for item in items for part in item])
    raise pickle.UnpicklingError("it makes a dictionary of something else than pairs")


def _no_bytes(arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        raise pickle.UnpicklingError("it makes bytes of something else")
    return b""


def _array_type(arguments: tuple[Any, ...]) -> np.dtype[Any]:
    match arguments:
        case (str(name), *_) if name in _ARRAY_TYPES:
            return np.dtype(name)
    raise pickle.UnpicklingError("it holds arrays of something else than numbers")


def _data_of_parameter(arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (Tensor() as data, *_):
            return data
    raise pickle.UnpicklingError("it makes a parameter of something else than a tensor")


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (Tensor() as storage, int(offset), tuple(size), tuple(stride), *_):
            try:
                tensor = storage.as_strided(size, stride, offset)
            except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # no place in it
                raise pickle.UnpicklingError(str(error)) from error
            if tensor.numel() <= storage.numel():
                return tensor
    raise pickle.UnpicklingError("it makes a tensor that is larger than its storage")
