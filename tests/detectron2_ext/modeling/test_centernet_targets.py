import math

import pytest
import torch

from detectron2_ext.modeling.centernet_targets import CenterNetTargetAssigner, Locations

STRIDES = [8, 16, 32]
SHAPES = [(8, 12), (4, 6), (2, 3)]  # an image of 64 x 96
RANGES = [[0, 20], [16, 40], [32, 10000000]]

AWKWARD = {
    "ordinary": [[10, 12, 40, 50], [60, 5, 90, 30]],
    "on the border": [[0, 0, 20, 64], [80, 40, 96, 64]],
    "partly outside": [[-30, -10, 12, 20], [85, 50, 140, 90]],
    "wholly outside": [[200, 200, 230, 240], [-50, 10, -20, 30]],
    "one inside the other": [[10, 10, 60, 60], [30, 30, 40, 40]],
    "two in one cell": [[16, 16, 30, 30], [17, 17, 29, 30]],
    "without width": [[30, 20, 30, 40]],
    "half diagonals at the ends of the ranges": [[30, 10, 54, 42], [16, 2, 64, 66], [20, 1, 58.4, 52.2]],
    "edges and middle on cells' middles": [[12, 12, 28, 44], [44, 4, 60, 36], [64, 32, 80, 48]],
    "a cell as far from one object as from the other": [[4, 20, 32, 40], [24, 20, 52, 40]],
    "whole image": [[0, 0, 96, 64]],
}


def crowd():
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=random) * torch.tensor([90.0, 60.0])
    return torch.cat([corner, corner + 1 + torch.rand(300, 2, generator=random) * 50], dim=1).tolist()


def oracle(boxes, min_overlap=0.8, min_radius=4.0):
    """Zhou et al., 2021, section 4.1, cell by cell in float64: heat, distances (or None), centres by level."""
    radius_share = (1 - min_overlap) / (1 + min_overlap)
    heat, distances, centers = [], [], []
    start = 0
    for stride, (rows, columns), (lowest, highest) in zip(STRIDES, SHAPES, RANGES, strict=True):
        fits = [lowest <= math.hypot(x2 - x1, y2 - y1) / 2 <= highest for x1, y1, x2, y2 in boxes]
        cells = [
            (math.floor((x1 + x2) / 2 / stride), math.floor((y1 + y2) / 2 / stride))
            for x1, y1, x2, y2 in boxes
        ]
        for (column, row), on_level in zip(cells, fits, strict=True):
            if on_level and 0 <= column < columns and 0 <= row < rows:
                centers.append(start + row * columns + column)
        for row in range(rows):
            for column in range(columns):
                x, y = column * stride + stride // 2, row * stride + stride // 2
                nearest, best = math.inf, None
                peak = 0.0
                for (x1, y1, x2, y2), cell, on_level in zip(boxes, cells, fits, strict=True):
                    squared = (x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2
                    if cell == (column, row):
                        squared = 0.0
                    radius = max(2 * radius_share**2 * (x2 - x1) * (y2 - y1), min_radius**2)
                    peak = max(peak, math.exp(-squared / radius))
                    around = abs(cell[0] - column) <= 1 and abs(cell[1] - row) <= 1
                    if x1 < x < x2 and y1 < y < y2 and around and on_level and squared / radius < nearest:
                        nearest = squared / radius
                        best = [(x - x1) / stride, (y - y1) / stride, (x2 - x) / stride, (y2 - y) / stride]
                heat.append(peak if peak >= 1e-4 else 0.0)
                distances.append(best)
        start += rows * columns
    return heat, distances, centers


@pytest.mark.parametrize("boxes", [*AWKWARD.values(), crowd()], ids=[*AWKWARD, "300 objects"])
def test_targets_are_the_formula(boxes):
    locations = Locations.of(SHAPES, STRIDES, torch.device("cpu"))
    targets = CenterNetTargetAssigner(RANGES, 0.8, 4.0)(locations, torch.tensor(boxes, dtype=torch.float32))
    heat, distances, centers = oracle([[float(edge) for edge in box] for box in boxes])
    torch.testing.assert_close(targets.heat, torch.tensor(heat), atol=1e-4, rtol=1e-4)
    assert targets.has_box.tolist() == [best is not None for best in distances]
    expected = torch.tensor([best for best in distances if best is not None]).reshape(-1, 4)
    torch.testing.assert_close(targets.distances[targets.has_box], expected, atol=1e-5, rtol=1e-4)
    assert sorted(targets.center_index[targets.is_center].tolist()) == sorted(centers)
