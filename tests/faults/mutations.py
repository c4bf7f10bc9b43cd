"""Damage to what a reader gets, bytes and values, and the bound on the memory that reading may take.

``MRCA_FUZZ_EXAMPLES=10000 python -m pytest tests/faults/test_readers.py`` is the nightly form: as many inputs for each
reader in the place of 200.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZING = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=int(os.environ.get("MRCA_FUZZ_EXAMPLES", "200")),
)
_EDGES = [
    0,
    -1,
    1 << 31,
    -(1 << 31),
    (1 << 63) - 1,
    1 << 63,
    -(1 << 63),
    1 << 64,
    10**400,
    0.5,
    1e308,
    -1e308,
]
_TEXTS = ["", "\0", "\ud800", "../../x", "/", "x" * 5000, "nan", "1e999"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([*_EDGES, *_TEXTS, float("nan"), float("inf"), float("-inf"), [], {}])
    | st.integers()
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def mutated_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with up to three bytes changed, a piece put in or taken out, or the end cut off; or as it is."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        if damaged:
            damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(damaged)))
    how = draw(st.sampled_from(["whole", "cut off", "piece out", "piece in"]))
    if how == "cut off":
        del damaged[start:]
    elif how == "piece out":
        del damaged[start : start + draw(st.integers(1, 16))]
    elif how == "piece in":
        damaged[start:start] = draw(st.binary(max_size=16))
    return bytes(damaged)


@st.composite
def mutated_json(draw: st.DrawFn, value: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """``value``, a tree of dicts, lists and plain values, with one or two of its nodes exchanged, removed or
    repeated. ``values``: what is put in their place; by default anything that JSON or YAML can hold."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(_places(changed)))
        if not place:
            return draw(values)
        target = changed
        for key in place[:-1]:
            target = target[key]
        how = draw(st.sampled_from(["exchange", "exchange", "exchange", "remove", "repeat"]))
        if how == "exchange":
            target[place[-1]] = draw(values)
        elif how == "remove":
            del target[place[-1]]
        elif isinstance(target, list):
            target.append(copy.deepcopy(target[place[-1]]))
        else:
            target[draw(st.text(max_size=5))] = copy.deepcopy(target[place[-1]])
    return changed


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of the whole and of every value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] + [spot for key, item in inner for spot in _places(item, (*place, key))]


@contextmanager
def memory_bounded(size: int) -> Iterator[None]:
    """Asserts that the block takes at most ten times ``size`` bytes plus 64 MB of memory, whoever allocates it.

    It looks at the process's peak of resident memory, which Linux lets a process set back. Read the undamaged
    input once before, so that no import of a library is counted.
    """
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _peak()
    yield
    taken = _peak() - before
    assert taken <= 10 * size + 64_000_000, f"{taken >> 20} MiB for an input of {size} bytes"


def _peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
