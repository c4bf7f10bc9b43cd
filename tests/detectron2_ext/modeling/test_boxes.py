import math

import pytest
import torch

from detectron2_ext.modeling.boxes import BoxCoder, clip_to_image, has_area, iou

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
BOXES = torch.tensor(
    [[0.0, 0.0, 10.0, 20.0], [3.5, 2.25, 90.0, 7.0], [-20.0, -5.0, 4.0, 300.0], [50.0, 60.0, 50.1, 60.1]]
)
OTHERS = torch.tensor(
    [[1.0, 2.0, 9.0, 30.0], [3.5, 2.25, 90.0, 7.0], [100.0, 100.0, 120.0, 130.0], [40.0, 55.0, 65.0, 70.0]]
)


def encode(box, other):
    """Girshick et al., 2014, appendix C, in float64."""
    width, height = box[2] - box[0], box[3] - box[1]
    other_width, other_height = other[2] - other[0], other[3] - other[1]
    return [
        WEIGHTS[0] * ((other[0] + other[2]) / 2 - (box[0] + box[2]) / 2) / width,
        WEIGHTS[1] * ((other[1] + other[3]) / 2 - (box[1] + box[3]) / 2) / height,
        WEIGHTS[2] * math.log(other_width / width),
        WEIGHTS[3] * math.log(other_height / height),
    ]


def test_deltas_are_the_formula():
    expected = torch.tensor(
        [encode(box, other) for box, other in zip(BOXES.tolist(), OTHERS.tolist(), strict=True)]
    )
    torch.testing.assert_close(BoxCoder(WEIGHTS).encode(BOXES, OTHERS), expected, rtol=1e-5, atol=1e-5)


def test_decoding_undoes_encoding():
    coder = BoxCoder(WEIGHTS)
    proposals, boxes = BOXES[:3], OTHERS[:3]
    torch.testing.assert_close(coder.decode(coder.encode(proposals, boxes), proposals), boxes)


def test_no_delta_makes_a_box_infinite():
    decoded = BoxCoder(WEIGHTS).decode(torch.tensor([[0.0, 0.0, 1e6, 1e6]]), BOXES[:1])
    assert decoded[0].tolist() == pytest.approx([5 - 312.5, 10 - 625, 5 + 312.5, 10 + 625], rel=1e-5)


def test_iou_is_the_share_of_common_area():
    overlaps = iou(BOXES[:, None], OTHERS)
    for n, a in enumerate(BOXES.tolist()):
        for m, b in enumerate(OTHERS.tolist()):
            width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            assert overlaps[n, m].item() == pytest.approx(width * height / (area - width * height), rel=1e-5)


def test_empty_boxes_overlap_nothing():
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0.0]
    assert iou(torch.zeros(1, 4), BOXES[:1]).tolist() == [0.0]


def test_boxes_are_clipped_to_their_own_image():
    clipped = clip_to_image(BOXES, torch.tensor([[15, 8], [5, 50], [100, 200], [40, 40]]))
    assert clipped.tolist() == [[0, 0, 8, 15], [3.5, 2.25, 50, 5], [0, 0, 4, 100], [40, 40, 40, 40]]
    assert has_area(clipped).tolist() == [True, True, True, False]
