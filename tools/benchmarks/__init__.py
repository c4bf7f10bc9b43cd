"""What tools/bench.py measures: a module each, whose ``measure(device)`` returns both sides and their ratio."""

from typing import Any


def times_faster(own: float, other: float, target: float) -> dict[str, Any]:
    """How many times the ``own`` seconds the ``other`` side takes, and whether that is ``target`` or more."""
    return {"ratio": other / own, "target": target, "met": other / own >= target}


def times_as_much(own: float, other: float, limit: float) -> dict[str, Any]:
    """How many times the ``other`` side's time or memory our ``own`` is, and whether that is ``limit`` or less."""
    return {"ratio": own / other, "target": limit, "met": own / other <= limit}
