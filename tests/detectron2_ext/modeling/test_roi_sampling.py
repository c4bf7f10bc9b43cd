import torch
from network_scenes import objects

from detectron2_ext.modeling.roi_sampling import GroundTruth, RoiSampler, label_rois, rois_of_objects
from detectron2_ext.structures import Instances

BACKGROUND = 5
SIZE = (64, 96)


def ground_truth(*images):
    return GroundTruth.from_instances([objects(*image, SIZE) for image in images], torch.device("cpu"))


def test_a_batch_has_masks_where_every_image_has_them():
    whole = objects([[0, 0, 10, 10]], [3], SIZE)
    boxes_only = Instances(SIZE, gt_boxes=whole.gt_boxes, gt_classes=whole.gt_classes)
    assert GroundTruth.from_instances([whole, boxes_only], torch.device("cpu")).masks is None
    assert len(GroundTruth.from_instances([whole, whole], torch.device("cpu")).masks) == 2


def test_an_object_is_real_where_the_data_does_not_say_and_a_batch_is_float32():
    said, silent = (objects([[0, 0, 10, 10], [5, 5, 9, 9]], [3, 1], SIZE) for _ in range(2))
    said.instance_source = torch.tensor([0, 1])
    said.gt_boxes, silent.gt_boxes = said.gt_boxes.double(), silent.gt_boxes.double()
    truth = GroundTruth.from_instances([said, silent], torch.device("cpu"))
    assert truth.pasted.tolist() == [[False, True], [False, False]]
    assert truth.boxes.dtype == torch.float32


def test_a_box_shows_the_object_that_it_overlaps_most():
    truth = ground_truth(([[0, 0, 10, 10], [20, 20, 40, 40], [22, 20, 42, 40]], [3, 1, 2]), ([], []))
    boxes = torch.tensor(
        [
            [0, 0, 10, 10],
            [0, 0, 10, 6],  # 0.6 exactly
            [0, 0, 10, 5.9],
            [21.5, 20, 41.5, 40],
            [60, 0, 80, 20],
            [0, 0, 10, 10],
        ]
    )
    image_index = torch.tensor([0, 0, 0, 0, 0, 1])
    rois = label_rois(boxes, image_index, truth, 0.6, BACKGROUND)
    assert rois.classes.tolist() == [3, 3, BACKGROUND, 2, BACKGROUND, BACKGROUND]
    assert rois.gt_index[[0, 1, 3]].tolist() == [0, 0, 2]


def test_every_object_of_images_with_more_and_fewer_shows_itself():
    boxes = [[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 30, 30]]
    rois = rois_of_objects(ground_truth(([], []), (boxes[:2], [3, 1]), (boxes[2:], [4])))
    assert rois.boxes.tolist() == boxes and rois.classes.tolist() == [3, 1, 4]
    assert rois.image_index.tolist() == [1, 1, 2] and rois.gt_index.tolist() == [0, 1, 0]


def crowd(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([80.0, 50.0])
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=random) * 14], dim=1)
    return boxes.tolist(), torch.randint(0, BACKGROUND, (count,), generator=random).tolist()


def test_sampling_keeps_the_share_of_objects_and_adds_their_own_boxes():
    truth = ground_truth(crowd(300), crowd(2), ([], []), ([[5, 5, 30, 30]], [0]))
    nowhere = torch.tensor([[90.0, 60.0, 96.0, 64.0]]).repeat(40, 1)
    proposals = [nowhere, nowhere, nowhere, torch.zeros(0, 4)]
    rois = RoiSampler(30, 0.25, 0.6, BACKGROUND)(proposals, truth)
    counts = [
        [
            int(((rois.image_index == n) & ((rois.classes < BACKGROUND) == shown)).sum())
            for shown in (True, False)
        ]
        for n in range(4)
    ]
    assert counts == [[7, 23], [2, 28], [0, 30], [1, 0]]  # a quarter of 30 at most
    shown = rois[(rois.classes < BACKGROUND).nonzero().squeeze(1)]
    assert torch.equal(shown.classes, truth.classes[shown.image_index, shown.gt_index])


def test_sampling_is_uniform_over_objects_and_over_background():
    truth = ground_truth(crowd(16))
    proposals = [torch.arange(40.0)[:, None] + torch.tensor([100.0, 100.0, 110.0, 110.0])]
    sampler = RoiSampler(16, 0.25, 0.6, BACKGROUND, torch.Generator().manual_seed(0))
    seen, background = torch.zeros(16), torch.zeros(40)
    for _ in range(400):
        rois = sampler(proposals, truth)
        seen[rois.gt_index[rois.classes < BACKGROUND]] += 1
        background[rois.boxes[rois.classes == BACKGROUND, 0].long() - 100] += 1
    for counts, expected in ((seen, 400 * 4 / 16), (background, 400 * 12 / 40)):
        assert counts.sum() == expected * len(counts)
        assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_the_generator_alone_decides_the_draw():
    truth = ground_truth(crowd(50))
    proposals = [torch.tensor(crowd(200, seed=1)[0])]

    def draw(seed, global_seed):
        torch.manual_seed(global_seed)
        return RoiSampler(32, 0.25, 0.6, BACKGROUND, torch.Generator().manual_seed(seed))(
            proposals, truth
        ).boxes

    assert torch.equal(draw(3, 0), draw(3, 1))
    assert not torch.equal(draw(3, 0), draw(4, 0))
