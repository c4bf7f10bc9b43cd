"""Twins of guided images: the same prompts and seeds without guidance, so that one sees what guidance does."""

from collections.abc import Callable, Sequence

import numpy as np

from exchange.twins import Twins, twins_record, write_twins
from generator.plan import PlannedImage
from generator.production import Draw


def choose_twins(plan: Sequence[PlannedImage], number: int) -> list[PlannedImage]:
    """``number`` images spread evenly over the plan of a round (all of them, where it has no more)."""
    places = np.unique(np.linspace(0, len(plan) - 1, min(number, len(plan))).round().astype(int))
    return [plan[place] for place in places.tolist()]


def draw_twins(
    path: str, images: Sequence[PlannedImage], begin: Callable[[Sequence[PlannedImage]], Draw]
) -> None:
    """Draws the twins of ``images`` into the file ``path``, unless they are there; ``begin`` returns what draws them
    without guidance and measures its criterion."""
    names = [image.file for image in images]
    there = twins_record(path)
    if there is None or there.files != names:
        made = begin(images)(images)
        write_twins(
            path, Twins(names, [each.criterion_after for each in made]), [each.pixels for each in made]
        )
