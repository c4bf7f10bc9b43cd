import copy
import pickle

import pytest
import torch
from torchvision.ops import roi_align

from detectron2_ext.structures import BitMasks, Instances

SIZE = (97, 133)


def random_masks(count: int, seed: int = 0) -> torch.Tensor:
    """Ragged rectangles, some cut by the border, the last one empty."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    for mask in masks[:-1]:
        top, left = (int(torch.randint(-20, extent, (1,), generator=random)) for extent in SIZE)
        height, width = torch.randint(1, 90, (2,), generator=random).tolist()
        part = mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
        part |= torch.rand(part.shape, generator=random) > 0.3
    return masks


def awkward_boxes(count: int, seed: int = 1) -> torch.Tensor:
    """Boxes of all sizes, many of them partly or wholly outside, one around the image, one without width."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([170.0, 130.0]) - 30
    boxes = torch.cat([corner, corner + 0.1 + torch.rand(count, 2, generator=random) * 140], dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, SIZE[1], SIZE[0]])
    boxes[1] = torch.tensor([20.0, 10.0, 20.0, 50.0])
    boxes[2] = torch.tensor([-300.0, -200.0, -250.0, -150.0])
    return boxes


@pytest.mark.parametrize("count", [9, 300])
def test_mask_targets_are_those_of_roi_align_on_the_whole_image(count):
    masks, boxes = random_masks(count), awkward_boxes(count)
    near = (
        BitMasks.from_full(masks).boxes
        + torch.randn(count, 4, generator=torch.Generator().manual_seed(2)) * 4
    )
    boxes[3::2] = near[3::2]
    rois = torch.cat([torch.arange(count)[:, None], boxes], dim=1)
    whole = roi_align(masks[:, None].float(), rois, 28, spatial_scale=1.0, aligned=True)[:, 0]
    targets = BitMasks.from_full(masks).crop_and_resize(boxes, 28)
    undecided = (whole - 0.5).abs() < 1e-5  # rounding decides
    assert torch.equal(targets[~undecided], (whole >= 0.5).float()[~undecided])
    assert undecided.float().mean() < 0.01
    assert 0.05 < targets.mean() < 0.95


def test_mask_targets_do_not_depend_on_how_many_are_made_at_once_nor_on_mixed_precision():
    sizes = [(4096, 1024), *((60 + n, 50 - n) for n in range(5))]  # four crops are resampled at once
    draw = torch.Generator().manual_seed(0)
    crops = [torch.rand(size, generator=draw) > 0.5 for size in sizes]
    corners = torch.tensor([[0, 0, width, height] for height, width in sizes])
    boxes = corners / 1.5 + torch.tensor([3.2, 1.7, 0.0, 0.0])
    masks = BitMasks.from_crops(crops, corners, (4100, 1100))
    alone = torch.cat([masks[n : n + 1].crop_and_resize(boxes[n : n + 1], 28) for n in range(6)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = masks.crop_and_resize(boxes, 28)
    assert (together != alone).float().mean() < 0.005  # where the order of summation decides
    assert 0.3 < alone[4:].mean() < 0.7


def test_a_target_pixel_that_the_mask_covers_by_half_belongs_to_the_object():
    checkerboard = BitMasks.from_full(torch.tensor([[[0, 1, 0, 1], [1, 0, 1, 0]] * 2], dtype=torch.bool))
    assert checkerboard.crop_and_resize(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 2).tolist() == [
        [[1, 1], [1, 1]]
    ]


def test_an_object_of_more_pixels_than_are_resampled_at_once_has_a_target():
    side = 4100  # 2^24 pixels are a square of 4096
    mask = BitMasks(
        torch.ones(1, side, side, dtype=torch.uint8), torch.tensor([[0, 0, side, side]]), (side, side)
    )
    assert mask.crop_and_resize(torch.tensor([[-2.0 * side, 0.0, side, side]]), 3).tolist() == [
        [[0, 0, 1]] * 3
    ]


def test_full_masks_survive_being_cut_to_their_objects():
    masks = random_masks(20)
    for value in (255, 0.25):
        cut = BitMasks.from_full(value * masks.byte())
        assert torch.equal(cut.to_full(), masks)
    assert cut.crops.numel() < masks.numel()
    assert cut.boxes[-1].tolist() == [0, 0, 0, 0]


def test_no_object_is_no_special_case():
    nothing = BitMasks.from_full(torch.zeros(0, *SIZE))
    assert nothing.to_full().shape == (0, *SIZE)
    assert nothing.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert torch.equal(BitMasks.from_crops([], [], SIZE).to_full(), nothing.to_full())
    assert len(Instances(SIZE)) == 0
    empty = BitMasks.from_full(torch.zeros(2, *SIZE))
    assert torch.equal(empty.crop_and_resize(awkward_boxes(3)[:2], 28), torch.zeros(2, 28, 28))


def test_instances_index_every_field():
    masks, boxes = random_masks(4), awkward_boxes(4)
    instances = Instances(SIZE, gt_boxes=boxes, gt_masks=BitMasks.from_full(masks))
    for index in (torch.tensor([2, 0]), torch.tensor([False, True, True, False]), slice(1, 3)):
        part = instances[index]
        assert torch.equal(part.gt_boxes, boxes[index])
        assert torch.equal(part.gt_masks.to_full(), masks[index])
        assert part.image_size == SIZE


def test_instances_refuse_a_field_of_another_length():
    instances = Instances(SIZE, gt_boxes=torch.zeros(2, 4))
    for length in (0, 1, 3):
        with pytest.raises(ValueError, match=f"gt_classes has {length} entries"):
            instances.gt_classes = torch.zeros(length)
    assert "gt_classes" not in instances
    for crops, boxes in (((2, 5, 5), (3, 4)), ((2, 5, 5), (2, 5)), ((2, 5), (2, 4))):
        with pytest.raises(ValueError, match="do not fit"):
            BitMasks(torch.zeros(crops), torch.zeros(boxes), SIZE)


def test_instances_travel_between_processes():
    instances = Instances(SIZE, gt_boxes=awkward_boxes(3), gt_masks=BitMasks.from_full(random_masks(3)))
    for twin in (pickle.loads(pickle.dumps(instances)), copy.deepcopy(instances)):
        assert torch.equal(twin.gt_boxes, instances.gt_boxes)
        assert torch.equal(twin.gt_masks.to_full(), instances.gt_masks.to_full())
    for moved in (instances.to("meta"), instances.gt_masks.to("meta")):
        assert moved.image_size == SIZE and len(moved) == 3
    moved = instances.to("meta")
    assert moved.gt_boxes.is_meta and moved.gt_masks.crops.is_meta and moved.gt_masks.boxes.is_meta
    assert "gt_masks" in instances and "scores" not in instances
    with pytest.raises(AttributeError, match="scores"):
        _ = instances.scores
