"""Line charts as SVG: where the lines and the numbers at the axes lie; page.html draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 200
_MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """A line of a chart: its points are (x, y) with finite numbers."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines in one frame, which begins at the lowest value and ends at the highest."""

    title: str
    lines: Sequence[Line]
    name_x: Callable[[float], str] = "{:.4g}".format

    def path(self, line: Line) -> str:
        """The points of a line in pixels, as SVG writes them; of very many, some spread evenly."""
        step = max(1, math.ceil(len(line.points) / _MOST_POINTS))
        left, right, low, high = self._frame()
        return " ".join(
            f"{(x - left) / (right - left) * WIDTH:.1f},{(high - y) / (high - low) * HEIGHT:.1f}"
            for x, y in [*line.points[:-1:step], line.points[-1]]
        )

    def bounds(self) -> tuple[str, str, str, str]:
        """The numbers at the axes: left, right, lowest and highest."""
        left, right, low, high = self._frame()
        return self.name_x(left), self.name_x(right), f"{low:.3g}", f"{high:.3g}"

    def _frame(self) -> tuple[float, float, float, float]:
        xs, ys = zip(*(point for line in self.lines for point in line.points), strict=True)
        left, low = min(xs), min(ys)
        return left, max(xs) if max(xs) > left else left + 1, low, max(ys) if max(ys) > low else low + 1
