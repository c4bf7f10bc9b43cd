import math

import pytest
import torch
from network_scenes import NUM_CLASSES, objects, overlap, small_config
from torch.nn import functional as F
from torchvision.ops import roi_align

from detectron2_ext.modeling import build_model
from detectron2_ext.modeling.centernet import Proposals
from detectron2_ext.modeling.roi_sampling import GroundTruth
from detectron2_ext.structures import BitMasks

SIZES = [(250, 300), (200, 256)]


SCENES = [([[10, 10, 70, 90], [5, 5, 295, 245]], [1, 3]), ([[35, 25, 230, 180]], [0])]


def world(scenes, **overrides):
    """Random heads and features, the objects of ``scenes`` and proposals near them and elsewhere."""
    torch.manual_seed(0)
    heads = build_model(small_config(**overrides), COUNTS).roi_heads
    for predictor in heads.box_predictor:
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.3)
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
    torch.nn.init.normal_(heads.mask_head.predictor.weight)
    features = [torch.randn(len(scenes), 16, 256 // stride, 320 // stride) for stride in (8, 16, 32)]
    instances = [objects(boxes, classes, size) for (boxes, classes), size in zip(scenes, SIZES, strict=True)]
    for image in instances:
        image.instance_source = torch.arange(len(image)) % 2
        y, x = torch.meshgrid(*(torch.arange(extent) for extent in image.image_size), indexing="ij")
        image.gt_masks = BitMasks.from_full(image.gt_masks.to_full() & ((x + 2 * y) % 70 < 40))  # stripes
    truth = GroundTruth.from_instances(instances, torch.device("cpu"))
    proposals = []
    for image in instances:
        corner = torch.rand(12, 2) * torch.tensor([230.0, 180.0])
        elsewhere = torch.cat([corner, corner + 5 + torch.rand(12, 2) * 60], dim=1)
        near = image.gt_boxes.repeat(6, 1) + torch.randn(6 * len(image), 4) * 3
        outside = torch.tensor([[305.0, 30.0, 318.0, 50.0]])
        boxes = torch.cat([near, elsewhere, outside])
        proposals.append(Proposals(boxes, torch.rand(len(boxes))))
    return heads, features, truth, proposals


COUNTS = [4, 0, 1, 9, 0]  # images that show each class: the others are no negatives of the federated loss


def with_share(x, parts):
    """The same with one of ``parts`` equal parts of the gradient."""
    return x / parts + (x * (1 - 1 / parts)).detach()


def pool(features, boxes, image_index, size):
    """RoIAlign in float64 from the level of stride 2^k with k = 4 + log2(size / 224), rounded down."""
    pooled = []
    for box, image in zip(boxes, image_index, strict=True):
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(4 + math.log2(side / 224)), 3), 5) if side else 3
        roi = torch.tensor([[image, *box]]).double()
        pooled.append(roi_align(features[level - 3], roi, size, 0.5**level, aligned=True))
    return torch.cat(pooled) if pooled else features[0].new_zeros(0, features[0].shape[1], size, size)


def label(box, objects_of_image, classes, threshold):
    """Class (background last) and index of the object that a box shows."""
    overlaps = [overlap(box, gt) for gt in objects_of_image]
    best = max(range(len(overlaps)), key=overlaps.__getitem__, default=0)
    shown = overlaps and overlaps[best] >= threshold
    return classes[best] if shown else NUM_CLASSES, best


def reference(weights, features, scenes, proposals, masks, loss_per, covered, boxes_from, masks_from):
    """The losses, from weights and features in float64; ``covered(present)``: classes of the federated loss;
    ``boxes_from``, ``masks_from``: sources of the objects that teach them."""
    rois = [
        (box, n)
        for n, ((objects_of_image, _), found) in enumerate(zip(scenes, proposals, strict=True))
        for box in found + objects_of_image
    ]
    losses, dropped, mask_rois = {}, 0, []
    stages = sum(name.endswith("cls_score.weight") for name in weights)

    def of(layer):
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    for stage, threshold in enumerate((0.6, 0.7, 0.8)[:stages]):
        if stage > 0:
            decoded = [
                ([min(max(x, 0.0), limit) for x, limit in zip(box, SIZES[n][::-1] * 2, strict=True)], n)
                for box, n in rois
            ]
            rois = [(box, n) for box, n in decoded if box[2] > box[0] and box[3] > box[1]]
            dropped += len(decoded) - len(rois)
        found = [label(box, *scenes[n], threshold) for box, n in rois]
        labels = torch.tensor([name for name, _ in found])
        shown = [(r, rois[r][1], index) for r, (name, index) in enumerate(found) if name < NUM_CLASSES]
        if not stage:
            mask_rois = [(rois[r][0], n, index) for r, n, index in shown if index % 2 in masks_from]
        shown = [(r, n, index) for r, n, index in shown if index % 2 in boxes_from]
        hidden = with_share(pool(features, *zip(*rois, strict=True), 7), stages).flatten(1)
        for layer in (f"box_head.{stage}.fc1", f"box_head.{stage}.fc2"):
            hidden = F.linear(hidden, *of(layer)).relu()
        logits = F.linear(hidden, *of(f"box_predictor.{stage}.cls_score"))
        deltas = F.linear(hidden, *of(f"box_predictor.{stage}.bbox_pred"))
        classes = sorted(covered(set(labels.tolist()) - {NUM_CLASSES}))
        target = F.one_hot(labels, NUM_CLASSES + 1).double()
        entropy = -(target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits))
        losses[f"loss_cls_stage{stage}"] = entropy[:, classes].sum() / len(rois)
        factors = (10 * (stage + 1), 10 * (stage + 1), 5 * (stage + 1), 5 * (stage + 1))
        distance = 0 * deltas.sum()
        for r, n, index in shown:
            (x1, y1, x2, y2), (gx1, gy1, gx2, gy2) = rois[r][0], scenes[n][0][index]
            wanted = [
                ((gx1 + gx2) / 2 - (x1 + x2) / 2) / (x2 - x1),
                ((gy1 + gy2) / 2 - (y1 + y2) / 2) / (y2 - y1),
                math.log((gx2 - gx1) / (x2 - x1)),
                math.log((gy2 - gy1) / (y2 - y1)),
            ]
            distance = (
                distance + (deltas[r] - torch.tensor(wanted).double() * torch.tensor(factors)).abs().sum()
            )
        divisor = len(rois) if loss_per == "sampled" else max(4 * len(shown), 1)
        losses[f"loss_box_reg_stage{stage}"] = distance / divisor
        moved = []
        for (box, n), delta in zip(rois, (deltas.detach() / torch.tensor(factors)).tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            x, y = (box[0] + box[2]) / 2 + delta[0] * width, (box[1] + box[3]) / 2 + delta[1] * height
            width, height = (
                width / 2 * min(math.exp(delta[2]), 62.5),
                height / 2 * min(math.exp(delta[3]), 62.5),
            )
            moved.append(([x - width, y - height, x + width, y + height], n))
        rois = moved
    hidden = pool(features, [box for box, *_ in mask_rois], [n for _, n, _ in mask_rois], 14)
    hidden = F.conv2d(hidden, *of("mask_head.mask_fcn1"), padding=1).relu()
    hidden = F.conv_transpose2d(hidden, *of("mask_head.deconv"), stride=2).relu()
    logits = F.conv2d(hidden, *of("mask_head.predictor"))
    target = torch.zeros_like(logits)
    for r, (box, n, index) in enumerate(mask_rois):
        roi = torch.tensor([[0, *box]]).double()
        share = roi_align(masks[n][index][None, None].double(), roi, 28, 1.0, aligned=True)
        target[r] = share[0] >= 0.5
    entropy = -(target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits))
    losses["loss_mask"] = entropy.sum() / max(entropy.numel(), 1)
    return losses, dropped


@pytest.mark.parametrize(
    ("loss_per", "num_classes", "covered", "boxes_from", "masks_from", "stages"),
    [
        ("sampled", 1, lambda present: present, (0, 1), (0,), 3),
        ("foreground", 50, lambda present: present | {0, 2, 3}, (0, 1), (0, 1), 3),
        ("sampled", None, lambda _: set(range(NUM_CLASSES)), (0,), (0, 1), 3),
        ("foreground", 1, lambda present: present, (0,), (0,), 2),
    ],
    ids=["present classes, real masks", "federated", "all classes, real boxes", "real, two stages"],
)
@pytest.mark.parametrize(
    "scenes",
    [SCENES, [([], []), SCENES[1]], [([], []), ([], [])]],
    ids=["ordinary", "one image empty", "both empty"],
)
def test_losses_and_gradients_are_the_cascade_written_out(
    scenes, loss_per, num_classes, covered, boxes_from, masks_from, stages
):
    settings = {"ROI_HEADS__BATCH_SIZE_PER_IMAGE": 256, "ROI_BOX_HEAD__BBOX_REG_LOSS_PER": loss_per}
    settings |= {"USE_XPASTE_BOX_LOSS": 1 in boxes_from, "USE_XPASTE_MASK_LOSS": 1 in masks_from}
    if stages == 2:
        settings |= {
            "ROI_BOX_CASCADE_HEAD__IOUS": [0.6, 0.7],
            "ROI_BOX_CASCADE_HEAD__BBOX_REG_WEIGHTS": [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 10.0, 10.0]],
        }
    if num_classes is None:
        settings["ROI_BOX_HEAD__USE_FED_LOSS"] = False
    else:
        settings["ROI_BOX_HEAD__FED_LOSS_NUM_CAT"] = num_classes
    heads, features, truth, proposals = world(scenes, **settings)  # few enough boxes that all are sampled
    features = [level.requires_grad_() for level in features]
    losses = heads.losses(features, SIZES, proposals, truth)
    names = [name for name, _ in heads.named_parameters()]
    exact = [tensor.detach().double().requires_grad_() for tensor in (*heads.parameters(), *features)]
    expected, dropped = reference(
        dict(zip(names, exact[: len(names)], strict=True)),
        exact[len(names) :],
        scenes,
        [of_image.boxes.double().tolist() for of_image in proposals],
        [of_image.to_full() for of_image in truth.masks],
        loss_per,
        covered,
        boxes_from,
        masks_from,
    )
    assert dropped > 0 and set(losses) == set(expected)
    options = {"retain_graph": True, "materialize_grads": True}
    for part, loss in losses.items():
        assert loss.item() == pytest.approx(expected[part].item(), rel=1e-4, abs=1e-7), part
        found = torch.autograd.grad(loss, [*heads.parameters(), *features], **options)
        gradients = torch.autograd.grad(expected[part], exact, **options)
        for name, single, gradient in zip([*names, "p3", "p4", "p5"], found, gradients, strict=True):
            atol = 1e-4 * gradient.abs().max().item()
            message = f"gradient of {part} by {name}"
            torch.testing.assert_close(single.double(), gradient, rtol=1e-3, atol=atol, msg=message)


@torch.no_grad()
def test_scores_are_the_mean_of_the_stages_times_the_proposals():
    heads, features, _, proposals = world(
        SCENES, ROI_HEADS__SCORE_THRESH_TEST=0.0, ROI_HEADS__NMS_THRESH_TEST=1.0
    )
    heads.eval()
    found = heads.detect(features, SIZES, proposals)
    for image, (height, width) in enumerate(SIZES):
        boxes = proposals[image].boxes
        image_index = torch.full((len(boxes),), image)
        total = torch.zeros(len(boxes), NUM_CLASSES, dtype=torch.float64)
        limits = torch.tensor([width, height, width, height])
        for stage in range(3):
            if stage > 0:
                boxes = boxes.clamp(min=0).minimum(limits)
            logits, deltas = heads.box_predictor[stage](
                heads.box_head[stage](heads.box_pooler(features, boxes, image_index))
            )
            total += logits[:, :-1].double().sigmoid()
            boxes = heads.box_coders[stage].decode(deltas, boxes)
        scores = (total / 3 * proposals[image].scores[:, None]).sqrt().flatten().sort(descending=True)
        best = scores.indices[:100]
        assert len(found[image]) == len(best)
        torch.testing.assert_close(found[image].scores.double(), scores.values[:100], rtol=1e-5, atol=1e-6)
        assert found[image].pred_classes.tolist() == (best % NUM_CLASSES).tolist()
        boxes = boxes.clamp(min=0).minimum(limits)[best // NUM_CLASSES]
        torch.testing.assert_close(found[image].pred_boxes, boxes, rtol=1e-5, atol=1e-3)
        masks = heads.mask_head(heads.mask_pooler(features, boxes, image_index[:1].expand(len(boxes))))
        torch.testing.assert_close(found[image].pred_masks, masks.sigmoid(), rtol=1e-3, atol=1e-4)
