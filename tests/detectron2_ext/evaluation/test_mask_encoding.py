"""Run lengths of predicted masks, made without the masks."""

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api

from detectron2_ext.evaluation.mask_encoding import encode_masks
from detectron2_ext.modeling.postprocessing import paste_masks

HEIGHT, WIDTH = 46, 60


def test_they_are_those_of_the_masks_that_the_network_pastes() -> None:
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(400, 2, 2, generator=random) * torch.tensor([WIDTH, HEIGHT])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[:40] = boxes[:40].round()
    boxes[40:80, 1], boxes[40:80, 3] = 0, HEIGHT  # runs go on in the next column
    boxes[80:90] = torch.tensor([0.0, 0, WIDTH, HEIGHT])
    boxes[90] = torch.tensor([WIDTH - 7.0, HEIGHT - 7, WIDTH, HEIGHT])  # with the last pixel
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    masks = (torch.rand(len(boxes), 7, 7, generator=random) * 1.5).clamp(max=1)
    masks[::5], masks[1::25] = 1.0, 0.0
    full = paste_masks(masks, boxes, HEIGHT, WIDTH).numpy().transpose(1, 2, 0)
    expected = [mask["counts"] for mask in mask_api.encode(np.asfortranarray(full.view(np.uint8)))]
    assert len(set(expected)) > 200
    assert encode_masks(masks.numpy(), boxes.numpy(), HEIGHT, WIDTH) == expected


def test_no_object_has_no_run_lengths() -> None:
    assert encode_masks(np.zeros((0, 7, 7), np.float32), np.zeros((0, 4), np.float32), HEIGHT, WIDTH) == []


def test_a_probability_of_exactly_one_half_is_the_object_s() -> None:
    box = np.array([[8, 8, 22, 22]], np.float32)  # two pixels a cell: the outermost ones see zeros, too
    (counts,) = encode_masks(np.full((1, 7, 7), 0.5, np.float32), box, HEIGHT, WIDTH)
    assert mask_api.area([{"size": [HEIGHT, WIDTH], "counts": counts}]).tolist() == [12 * 12]
