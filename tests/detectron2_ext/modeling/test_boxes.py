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


def test_decoding_undoes_encoding():
    coder = BoxCoder(WEIGHTS)
    proposals, boxes = BOXES[:3], OTHERS[:3]
    torch.testing.assert_close(coder.decode(coder.encode(proposals, boxes), proposals), boxes)


def test_decoding_is_in_float32_whatever_the_deltas_are():
    deltas = torch.tensor([[3.0, -1.0, 0.7, 0.9]]).bfloat16()
    decoded = BoxCoder(WEIGHTS).decode(deltas, BOXES[:1])
    torch.testing.assert_close(decoded, BoxCoder(WEIGHTS).decode(deltas.float(), BOXES[:1]), atol=0, rtol=0)


def test_no_delta_makes_a_box_infinite():
    decoded = BoxCoder(WEIGHTS).decode(torch.tensor([[0.0, 0.0, 1e6, 1e6]]), BOXES[:1])
    assert decoded[0].tolist() == pytest.approx([5 - 312.5, 10 - 625, 5 + 312.5, 10 + 625], rel=1e-5)


def test_empty_boxes_overlap_nothing():
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0.0]
    assert iou(torch.zeros(1, 4), BOXES[:1]).tolist() == [0.0]


def test_boxes_are_clipped_to_their_own_image():
    clipped = clip_to_image(BOXES, torch.tensor([[15, 8], [5, 50], [100, 200], [40, 40]]))
    assert clipped.tolist() == [[0, 0, 8, 15], [3.5, 2.25, 50, 5], [0, 0, 4, 100], [40, 40, 40, 40]]
    assert has_area(clipped).tolist() == [True, True, True, False]
