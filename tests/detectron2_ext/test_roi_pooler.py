import math

import pytest
import torch
from torchvision.ops import roi_align

from detectron2_ext.roi_pooler import RoiPooler, gathering_roi_align, roi_align_weights, separable_roi_align


def awkward_rois(count, height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    extent = torch.tensor([width, height])
    corner = torch.rand(count, 2, generator=random) * extent * 1.4 - 0.2 * extent
    boxes = torch.cat([corner, corner + 0.01 + torch.rand(count, 2, generator=random) * extent], dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    boxes[1] = torch.tensor([5.0, 5.0, 5.0, 9.0])
    return boxes


@pytest.mark.parametrize("ours", [separable_roi_align, gathering_roi_align])
@pytest.mark.parametrize("num_boxes", [2, 300])
def test_roi_align_is_torchvisions_forward_and_backward(ours, num_boxes):
    torch.manual_seed(0)
    features = torch.randn(3, 4, 11, 17)
    boxes, image_index = awkward_rois(num_boxes, 88, 136), torch.randint(0, 3, (num_boxes,))
    outputs, gradients = [], []
    rois = torch.cat([image_index[:, None].float(), boxes], dim=1)
    for pool in (ours, None):
        leaf = features.clone().requires_grad_()
        if pool:
            pooled = pool(leaf, boxes, image_index, 7, 1 / 8)
        else:
            pooled = roi_align(leaf, rois, 7, spatial_scale=1 / 8, aligned=True)
        (pooled * torch.arange(7.0)).sum().backward()
        outputs.append(pooled.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("ours", [separable_roi_align, gathering_roi_align])
def test_features_of_half_precision_are_pooled_in_float32(ours):
    features = torch.randn(2, 3, 11, 17).bfloat16()
    rois = awkward_rois(9, 88, 136), torch.arange(9) % 2, 7, 1 / 8
    torch.testing.assert_close(ours(features, *rois), ours(features.float(), *rois), atol=0, rtol=0)


def test_weights_of_a_window_are_a_part_of_those_of_the_image():
    start, end = torch.tensor([3.2, -4.0]), torch.tensor([30.7, 12.0])
    whole = roi_align_weights(start, end, 5, 40, torch.tensor([0, 0]), 40)
    part = roi_align_weights(start, end, 5, 40, torch.tensor([10, 0]), 8)
    assert torch.equal(part[0], whole[0, :, 10:18])
    assert torch.equal(part[1], whole[1, :, :8])
    torch.testing.assert_close(whole[0].sum(1), torch.ones(5))


@pytest.mark.parametrize("size", [20, 40])  # cells per side of the finest level: separable, gathering
@pytest.mark.parametrize("strides", [[8, 16, 32], [16, 32]])
def test_boxes_are_pooled_from_the_level_that_fits_them(size, strides):
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, *[size * strides[0] // stride] * 2) for stride in strides]
    sides = [4.0, 111.0, 112.0, 112.5, 223.0, 224.0, 225.0, 447.0, 448.0, 449.0, 2000.0, 60.0]
    boxes = torch.tensor([[10.0, 20.0, 10 + 2 * side, 20 + side / 2] for side in sides])
    image_index = torch.arange(len(sides)) % 2
    pooled = RoiPooler(7, strides)(levels, boxes, image_index)
    for n, side in enumerate(sides):
        stride = 2 ** math.floor(4 + math.log2(side / 224))
        level = strides.index(min(max(stride, strides[0]), 32))
        roi = torch.cat([image_index[n : n + 1, None].float(), boxes[n : n + 1]], dim=1)
        expected = roi_align(levels[level], roi, 7, spatial_scale=1 / strides[level], aligned=True)
        torch.testing.assert_close(pooled[n], expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 40])
def test_pooling_no_box_gives_no_feature(size):
    levels = [torch.zeros(2, 3, size, size), torch.zeros(2, 3, size // 2, size // 2)]
    pooled = RoiPooler(7, [8, 16])(levels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 3, 7, 7)
