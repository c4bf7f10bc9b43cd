import math

import pytest
import torch

from detectron2_ext.modeling.mask_head import MaskHead, mask_loss
from detectron2_ext.modeling.roi_sampling import LabeledRois
from detectron2_ext.structures import BitMasks


def rectangles(*boxes):
    masks = torch.zeros(len(boxes), 64, 96, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return BitMasks.from_full(masks)


def rois(boxes, image_index, gt_index):
    zeros = torch.zeros(len(boxes), dtype=torch.int64)
    return LabeledRois(torch.tensor(boxes), torch.tensor(image_index), zeros, torch.tensor(gt_index))


def test_loss_compares_each_box_with_its_own_object():
    masks = [rectangles((0, 0, 10, 10), (20, 20, 48, 48)), rectangles((8, 8, 22, 36))]
    boxes = rois([[20.0, 20.0, 48.0, 48.0], [8.0, 8.0, 36.0, 36.0]], [0, 1], [1, 0])
    logits = torch.randn(2, 28, 28, generator=torch.Generator().manual_seed(0))
    # The first box is full; of the second the left half is.
    expected = 0.0
    for n, image in enumerate(logits.double().tolist()):
        for row in image:
            for column, x in enumerate(row):
                p = 1 / (1 + math.exp(-x))
                expected -= math.log(p) if n == 0 or column < 14 else math.log(1 - p)
    assert mask_loss(logits, boxes, masks).item() == pytest.approx(expected / (2 * 28 * 28), rel=1e-5)


def test_loss_without_foreground_reaches_every_weight():
    head = MaskHead(8, 8, num_convs=2)
    nothing = LabeledRois(torch.zeros(0, 4), *(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    loss = mask_loss(head(torch.zeros(0, 8, 14, 14)), nothing, [rectangles((0, 0, 5, 5)), rectangles()])
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_head_doubles_the_resolution():
    assert MaskHead(8, 4, num_convs=0)(torch.zeros(3, 8, 14, 14)).shape == (3, 28, 28)
