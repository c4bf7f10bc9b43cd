"""Where the proposal generator should see which object: heat map, distances, positive locations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Locations:
    """The M cells of all pyramid levels of one padded image, level after level, row after row.

    ``points``: float32 (M, 2), x and y of the cell's centre in pixels. ``cells``: int64 (M, 2), column and
    row in its level. ``level``: int64 (M,). ``strides``: float32 (L,). ``shapes``: int64 (L, 2), rows and
    columns of each level. ``starts``: int64 (L,), index of each level's first cell.
    """

    points: Tensor
    cells: Tensor
    level: Tensor
    strides: Tensor
    shapes: Tensor
    starts: Tensor

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Locations:
        """The cells of levels with these (rows, columns) and these strides in pixels."""
        cells, points, level = [], [], []
        for index, ((rows, columns), stride) in enumerate(zip(shapes, strides, strict=True)):
            y, x = torch.meshgrid(
                torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
            )
            cells.append(torch.stack([x, y], dim=-1).view(-1, 2))
            points.append(cells[-1].float() * stride + stride // 2)
            level.append(torch.full((rows * columns,), index, device=device))
        areas = torch.tensor([rows * columns for rows, columns in shapes])
        return cls(
            points=torch.cat(points),
            cells=torch.cat(cells),
            level=torch.cat(level),
            strides=torch.tensor(strides, dtype=torch.float32, device=device),
            shapes=torch.tensor(shapes, device=device),
            starts=(areas.cumsum(0) - areas).to(device),
        )


@dataclass(frozen=True)
class CenterNetTargets:
    """Of one image with M cells and N objects on L levels.

    ``heat``: float32 (M,) in [0, 1]. ``distances``: float32 (M, 4) to left, top, right, bottom in units of
    the stride, where ``has_box`` (bool (M,)). ``center_index``: int64 (N * L,), the cell of each object's
    centre on each level, where ``is_center`` (bool (N * L,)): the object's size belongs to that level.
    """

    heat: Tensor
    distances: Tensor
    has_box: Tensor
    center_index: Tensor
    is_center: Tensor


class CenterNetTargetAssigner:
    """Targets of the class-agnostic CenterNet (Zhou et al., Probabilistic two-stage detection, 2021, section
    4.1).

    Args:
        size_ranges: per level, the half diagonals in pixels of the boxes that it finds (both ends included).
        min_overlap: a centre off by the heat map's radius still gives a box of this IoU.
        min_radius: of the heat map's peaks, in pixels.
    """

    def __init__(self, size_ranges: Sequence[Sequence[float]], min_overlap: float, min_radius: float) -> None:
        self.size_ranges = torch.tensor(size_ranges, dtype=torch.float32)
        self.radius_share = (1 - min_overlap) / (1 + min_overlap)
        self.min_radius = min_radius

    @torch.no_grad()
    def __call__(self, locations: Locations, boxes: Tensor) -> CenterNetTargets:
        """Targets for ``boxes``, float32 (N, 4) XYXY pixels."""
        num_cells = len(locations.points)
        if not len(boxes):
            return CenterNetTargets(
                heat=boxes.new_zeros(num_cells),
                distances=boxes.new_ones(num_cells, 4),
                has_box=boxes.new_zeros(num_cells, dtype=torch.bool),
                center_index=boxes.new_zeros(0, dtype=torch.int64),
                is_center=boxes.new_zeros(0, dtype=torch.bool),
            )
        corners = boxes.view(-1, 2, 2)
        center = corners.mean(dim=1)
        size = corners[:, 1] - corners[:, 0]
        on_level = self._on_level(size)  # (L, N)
        center_cell = (center / locations.strides[:, None, None]).floor().long()  # (L, N, 2)

        cell_offset = locations.cells[:, None] - center_cell[locations.level]  # (M, N, 2)
        squared_distance = (locations.points[:, None] - center).square().sum(-1)
        squared_distance.masked_fill_((cell_offset == 0).all(-1), 0.0)
        squared_radius = (2 * self.radius_share**2 * size.prod(-1)).clamp(min=self.min_radius**2)
        relative = squared_distance / squared_radius  # (M, N)
        heat = torch.exp(-relative.amin(1))

        inside = (
            (locations.points[:, None] > corners[:, 0]) & (locations.points[:, None] < corners[:, 1])
        ).all(-1)
        candidate = inside & (cell_offset.abs() <= 1).all(-1) & on_level[locations.level]
        nearest = relative.masked_fill(~candidate, torch.inf).min(1)
        has_box = nearest.values.isfinite()
        chosen = corners[nearest.indices]
        distances = torch.cat([locations.points - chosen[:, 0], chosen[:, 1] - locations.points], dim=1)

        rows, columns = locations.shapes[:, None].unbind(-1)  # (L, 1)
        column, row = center_cell.unbind(-1)
        in_image = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        index = locations.starts[:, None] + row * columns + column
        is_center = on_level & in_image
        return CenterNetTargets(
            heat=heat.masked_fill(heat < 1e-4, 0.0),
            distances=torch.where(
                has_box[:, None], distances / locations.strides[locations.level, None], 1.0
            ),
            has_box=has_box,
            center_index=index.masked_fill(~is_center, 0).flatten(),
            is_center=is_center.flatten(),
        )

    def _on_level(self, size: Tensor) -> Tensor:
        """bool (L, N): whether objects of ``size`` (N, 2) belong to each level."""
        half_diagonal = size.square().sum(-1).sqrt() / 2
        lowest, highest = self.size_ranges.to(size.device)[:, :, None].unbind(1)
        return (half_diagonal >= lowest) & (half_diagonal <= highest)
