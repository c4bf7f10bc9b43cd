import pytest
import torch
from network_scenes import NUM_CLASSES, objects, small_config

from detectron2_ext.modeling import build_model
from detectron2_ext.modeling.box_head import ScaleGradient
from detectron2_ext.modeling.boxes import BoxCoder
from detectron2_ext.modeling.centernet import Proposals
from detectron2_ext.modeling.ground_truth import GroundTruth

SIZES = [(60, 90), (64, 96)]


def world(scenes, seed=0, **overrides):
    """Random heads and features, the objects of ``scenes`` and proposals near them and elsewhere."""
    torch.manual_seed(seed)
    heads = build_model(small_config(**overrides)).roi_heads
    for predictor in heads.box_predictor:
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.3)
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
    features = [torch.randn(len(scenes), 16, 64 // stride, 96 // stride) for stride in (8, 16, 32)]
    instances = [objects(boxes, classes, size) for (boxes, classes), size in zip(scenes, SIZES, strict=True)]
    for image in instances:
        image.instance_source = torch.arange(len(image)) % 2  # a pasted object teaches like any other
    truth = GroundTruth.from_instances(instances, torch.device("cpu"))
    proposals = []
    for image in instances:
        corner = torch.rand(12, 2) * torch.tensor([70.0, 40.0])
        elsewhere = torch.cat([corner, corner + 5 + torch.rand(12, 2) * 30], dim=1)
        boxes = torch.cat([image.gt_boxes.repeat(6, 1) + torch.randn(6 * len(image), 4), elsewhere])
        proposals.append(Proposals(boxes, torch.rand(len(boxes))))
    return heads, features, truth, proposals


SCENES = [([[10, 10, 40, 40], [50, 20, 80, 55]], [1, 3]), ([[5, 5, 30, 60]], [0])]


def reference_losses(heads, features, truth, proposals):
    """The cascade written out box by box, from the same network outputs and the same draws."""
    sizes = torch.tensor(SIZES)
    rois = heads.sampler([p.boxes for p in proposals], truth)
    boxes, image_index, labels, matched = rois.boxes, rois.image_index, rois.classes, rois.gt_index
    losses = {}
    for stage, threshold in enumerate((0.6, 0.7, 0.8)):
        if stage > 0:
            keep, clipped = [], []
            for n, box in enumerate(boxes.double().tolist()):
                height, width = sizes[image_index[n]].tolist()
                box = [min(max(x, 0.0), limit) for x, limit in zip(box, (width, height) * 2, strict=True)]
                if box[2] > box[0] and box[3] > box[1]:
                    keep.append(n)
                    clipped.append(box)
            boxes, image_index = torch.tensor(clipped), image_index[keep]
            labels, matched = [], []
            for box, image in zip(clipped, image_index.tolist(), strict=True):
                overlaps = [_overlap(box, gt) for gt in truth.boxes[image].double().tolist()]
                best = max(range(len(overlaps)), key=overlaps.__getitem__)
                shown = overlaps[best] >= threshold
                labels.append(truth.classes[image, best].item() if shown else NUM_CLASSES)
                matched.append(best)
            labels, matched = torch.tensor(labels), torch.tensor(matched)
        pooled = heads.box_pooler(features, boxes.float(), image_index)
        logits, deltas = heads.box_predictor[stage](heads.box_head[stage](pooled))
        present = sorted(set(labels.tolist()) - {NUM_CLASSES})
        probability = logits.double().sigmoid()
        target = torch.nn.functional.one_hot(labels, NUM_CLASSES + 1).double()
        entropy = -(target * probability.log() + (1 - target) * (1 - probability).log())
        losses[f"loss_cls_stage{stage}"] = entropy[:, present].sum().item() / len(boxes)
        weights = torch.tensor([10.0, 10.0, 5.0, 5.0]).double() * (stage + 1)
        distance, shown = 0.0, 0
        for n in (labels < NUM_CLASSES).nonzero().squeeze(1).tolist():
            x1, y1, x2, y2 = boxes[n].double()
            shown += 1
            gx1, gy1, gx2, gy2 = truth.boxes[image_index[n], matched[n]].double()
            width, height = x2 - x1, y2 - y1
            expected = torch.stack(
                [
                    ((gx1 + gx2) / 2 - (x1 + x2) / 2) / width,
                    ((gy1 + gy2) / 2 - (y1 + y2) / 2) / height,
                    ((gx2 - gx1) / width).log(),
                    ((gy2 - gy1) / height).log(),
                ]
            )
            distance += (deltas[n].detach().double() - expected * weights).abs().sum().item()
        divisor = max(4 * shown, 1) if heads.mean_over_foreground else len(boxes)
        losses[f"loss_box_reg_stage{stage}"] = distance / divisor
        boxes = BoxCoder(weights.tolist()).decode(deltas, boxes.float())
    return losses


def _overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    if width * height == 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


@pytest.mark.parametrize(
    "scenes",
    [
        SCENES,
        [([], []), SCENES[1]],
        [([], []), ([], [])],
        [([[0, 0, 90, 60]], [4]), ([[80, 50, 96, 64]], [2])],
    ],
    ids=["ordinary", "one image empty", "both empty", "on the border"],
)
@pytest.mark.parametrize("loss_per", ["sampled", "foreground"])
def test_losses_are_the_cascade_written_out(scenes, loss_per):
    # As many classes as are present: no random negative.
    heads, features, truth, proposals = world(
        scenes, ROI_BOX_HEAD__FED_LOSS_NUM_CAT=1, ROI_BOX_HEAD__BBOX_REG_LOSS_PER=loss_per
    )
    torch.manual_seed(1)
    losses = heads.losses(features, SIZES, proposals, truth)
    torch.manual_seed(1)
    expected = reference_losses(heads, features, truth, proposals)
    mask = losses.pop("loss_mask")
    assert mask.isfinite() and (mask > 0) == any(boxes for boxes, _ in scenes)
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-7), name


def test_every_class_counts_without_the_federated_loss():
    heads, features, truth, proposals = world(SCENES, ROI_BOX_HEAD__USE_FED_LOSS=False)
    federated, *_ = world(SCENES, ROI_BOX_HEAD__FED_LOSS_NUM_CAT=1)
    torch.manual_seed(1)
    all_classes = heads.losses(features, SIZES, proposals, truth)["loss_cls_stage0"]
    torch.manual_seed(1)
    present_only = federated.losses(features, SIZES, proposals, truth)["loss_cls_stage0"]
    assert all_classes > present_only
    assert heads.box_predictor[0].freq_weight is None


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
        for stage in range(3):
            if stage > 0:
                boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
            logits, deltas = heads.box_predictor[stage](
                heads.box_head[stage](heads.box_pooler(features, boxes, image_index))
            )
            total += logits[:, :-1].double().sigmoid()
            boxes = heads.box_coders[stage].decode(deltas, boxes)
        scores = (total / 3 * proposals[image].scores[:, None]).sqrt().flatten().sort(descending=True).values
        torch.testing.assert_close(
            found[image].scores.double(), scores[: len(found[image])], rtol=1e-5, atol=1e-6
        )
        assert len(found[image]) == min(100, scores.numel())
        assert (found[image].pred_boxes[:, 2] <= width).all() and (
            found[image].pred_boxes[:, 3] <= height
        ).all()
        assert found[image].pred_masks.shape == (len(found[image]), 28, 28)


@torch.no_grad()
def test_images_do_not_influence_each_other():
    heads, features, _, proposals = world(SCENES)
    heads.eval()
    together = heads.detect(features, SIZES, proposals)
    for image in range(2):
        alone = heads.detect(
            [level[image : image + 1] for level in features],
            SIZES[image : image + 1],
            proposals[image : image + 1],
        )[0]
        torch.testing.assert_close(alone.scores, together[image].scores)
        torch.testing.assert_close(alone.pred_masks, together[image].pred_masks, rtol=1e-4, atol=1e-5)


def test_a_third_of_the_gradient_reaches_the_features():
    x = torch.ones(3, requires_grad=True)
    (ScaleGradient.apply(x, 1 / 3) * torch.tensor([3.0, 6.0, 9.0])).sum().backward()
    assert x.grad.tolist() == pytest.approx([1.0, 2.0, 3.0])
