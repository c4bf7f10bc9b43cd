import math

import pytest
import torch
from network_scenes import overlap

from detectron2_ext.modeling import postprocessing
from detectron2_ext.modeling.postprocessing import (
    DetectionSelection,
    paste_masks,
    resize_detections,
    with_pasted_masks,
)
from detectron2_ext.structures import Instances

SIZE = (40, 60)


def select(boxes, scores, threshold, nms, limit):
    """Greedy suppression per class, in float64."""
    height, width = SIZE
    clipped = [
        [min(max(x, 0.0), extent) for x, extent in zip(box, (width, height, width, height), strict=True)]
        for box in boxes
    ]
    candidates = sorted(
        ((s, c, n) for n, row in enumerate(scores) for c, s in enumerate(row) if s > threshold), reverse=True
    )
    kept = []
    for score, label, n in candidates:
        if all(label != other or overlap(clipped[n], clipped[m]) <= nms for _, other, m in kept):
            kept.append((score, label, n))
    return [(clipped[n], score, label) for score, label, n in kept[:limit]]


def random_candidates(count, classes, seed=0):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([60.0, 40.0]) - 6
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=random) * 30], dim=1)
    return boxes, torch.rand(count, classes, generator=random)


@pytest.mark.parametrize(
    ("count", "classes", "limit"), [(40, 4, 300), (300, 2, 25), (30, 1, 300), (0, 4, 300)]
)
def test_detections_are_suppressed_class_by_class(count, classes, limit):
    boxes, scores = random_candidates(count, classes)
    scores[count // 2 :, 0] = 0.5  # the threshold itself is too low
    found = DetectionSelection(0.5, 0.5, limit)(boxes, scores, SIZE)
    expected = select(boxes.double().tolist(), scores.double().tolist(), 0.5, 0.5, limit)
    assert found.pred_classes.tolist() == [label for _, _, label in expected]
    torch.testing.assert_close(found.scores, torch.tensor([score for _, score, _ in expected]))
    torch.testing.assert_close(found.pred_boxes, torch.tensor([box for box, _, _ in expected]).reshape(-1, 4))


def test_boxes_that_are_no_numbers_are_dropped():
    boxes, scores = random_candidates(5, 2)
    boxes[1, 0], scores[3, 1] = math.nan, math.inf
    found = DetectionSelection(0.0, 1.0, 300)(boxes, scores, SIZE)
    assert len(found) == 6
    assert found.pred_boxes.isfinite().all() and found.scores.isfinite().all()


def pasted(mask, box, height, width):
    """Bilinear interpolation at the middle of each pixel, zeros around the mask, in float64."""
    side = len(mask)
    image = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5
            for row in (math.floor(v), math.floor(v) + 1):
                for column in (math.floor(u), math.floor(u) + 1):
                    if 0 <= row < side and 0 <= column < side:
                        weight = (1 - abs(v - row)) * (1 - abs(u - column))
                        image[y][x] += weight * mask[row][column]
    return image


@pytest.mark.parametrize("pixels", [1, 2 * 30 * 34, 2**24])
def test_masks_are_interpolated_into_the_image_whatever_is_done_at_once(pixels, monkeypatch):
    monkeypatch.setattr(postprocessing, "_PIXELS_AT_ONCE", pixels)
    random = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[3.2, 4.7, 30.1, 28.9], [0.0, 0.0, 25.0, 20.0], [10.0, 2.0, 12.5, 3.25]])
    masks = torch.rand(3, 7, 7, generator=random)
    found = paste_masks(masks, boxes, 30, 34)
    for n in range(3):
        exact = torch.tensor(pasted(masks[n].double().tolist(), boxes[n].double().tolist(), 30, 34))
        decided = (exact - 0.5).abs() > 1e-5
        assert torch.equal(found[n][decided], (exact >= 0.5)[decided])
    assert found[0].any() and not found[0].all()
    half = masks.bfloat16()
    assert torch.equal(paste_masks(half, boxes, 30, 34), paste_masks(half.float(), boxes, 30, 34))
    assert paste_masks(torch.full((1, 2, 2), 0.5), torch.tensor([[0.0, 0.0, 2.0, 2.0]]), 2, 2).all()


def test_detections_move_to_the_original_image():
    boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0], [0.0, 0.0, 60.0, 40.0], [59.9, 39.0, 60.0, 39.0]])
    found = Instances(
        SIZE,
        pred_boxes=boxes,
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.tensor([1, 0, 2]),
        pred_masks=torch.ones(3, 28, 28),
    )
    resized = resize_detections(found, 80, 90)
    assert resized.image_size == (80, 90)
    assert resized.pred_boxes.tolist() == [[15, 20, 45, 40], [0, 0, 90, 80]]
    assert resized.scores.tolist() == pytest.approx([0.9, 0.8])
    masks = with_pasted_masks(resized).pred_masks
    assert masks.shape == (2, 80, 90)
    assert masks.sum((1, 2)).tolist() == [30 * 20, 90 * 80 - 4]  # interpolation rounds the corners


def test_no_detection_has_no_masks():
    nothing = Instances(
        SIZE,
        pred_boxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_masks=torch.zeros(0, 28, 28),
    )
    assert with_pasted_masks(resize_detections(nothing, 80, 90)).pred_masks.shape == (0, 80, 90)
