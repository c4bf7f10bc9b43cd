import math

import pytest
import torch
from network_scenes import objects, overlap
from torch import nn

from detectron2_ext.modeling.centernet import CenterNet, CenterNetHead, HeatMapLoss, ProposalSelection
from detectron2_ext.modeling.centernet_targets import CenterNetTargetAssigner
from detectron2_ext.modeling.roi_sampling import GroundTruth

STRIDES = [8, 16]
SHAPES = [(6, 7), (3, 4)]


class Predictions(nn.Module):
    """A head that predicts what it was given."""

    def __init__(self, heat_logits, distances):
        super().__init__()
        self.outputs = heat_logits, distances

    def forward(self, features):
        return self.outputs


def make(batch, seed=0, pre_nms=30, post_nms=20, threshold=0.3, nms=0.5):
    random = torch.Generator().manual_seed(seed)
    heat = [torch.randn(batch, 1, *shape, generator=random) for shape in SHAPES]
    heat[0][:, :, 0, 0] = 0.0  # probability one half, exactly
    distances = [(torch.randn(batch, 4, *shape, generator=random) * 2).relu() for shape in SHAPES]
    testing = ProposalSelection(threshold, nms, pre_nms, post_nms)
    training = ProposalSelection(threshold, 0.9, pre_nms, post_nms)
    network = CenterNet(
        Predictions(heat, distances),
        STRIDES,
        CenterNetTargetAssigner([[0, 40], [30, 10000000]], 0.8, 4.0),
        HeatMapLoss(0.5, 0.5, alpha=0.25, beta=4.0, gamma=2.0, clamp=1e-4, ignore_above=0.85),
        1.0,
        training,
        testing,
    )
    features = [torch.zeros(batch, 1, *shape) for shape in SHAPES]
    return network, features, heat, distances


def decode(heat, distances, image, pre_nms, post_nms, threshold, nms):
    """Boxes and scores of one image, cell by cell in float64."""
    candidates = []
    for stride, level_heat, level_distances in zip(STRIDES, heat, distances, strict=True):
        found = []
        rows, columns = level_heat.shape[2:]
        for row in range(rows):
            for column in range(columns):
                p = 1 / (1 + math.exp(-level_heat[image, 0, row, column].item()))
                x, y = column * stride + stride // 2, row * stride + stride // 2
                left, top, right, bottom = (level_distances[image, :, row, column].double() * stride).tolist()
                x1, y1 = x - left, y - top
                if p > threshold:
                    found.append(
                        (math.sqrt(p), [x1, y1, max(x + right, x1 + 0.01), max(y + bottom, y1 + 0.01)])
                    )
        candidates += sorted(found, reverse=True)[:pre_nms]
    kept = []
    for score, box in sorted(candidates, reverse=True):
        if all(overlap(box, other) <= nms for _, other in kept):
            kept.append((score, box))
    return kept[:post_nms]


@pytest.mark.parametrize("limits", [(30, 20), (4, 20), (30, 3), (1000, 1000)])
@pytest.mark.parametrize("threshold", [0.5, 0.9999])
def test_proposals_are_the_decoded_heat_map(limits, threshold):
    network, features, heat, distances = make(3, 0, *limits, threshold)
    proposals, losses = network.eval()(features)
    assert losses == {}
    for image, found in enumerate(proposals):
        expected = decode(heat, distances, image, *limits, threshold, 0.5)
        boxes = torch.tensor([box for _, box in expected]).reshape(-1, 4)
        torch.testing.assert_close(found.boxes, boxes, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _ in expected]))


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (96, 32), (80, 40), (64, 32), (32, 16), (16, 8)])
def test_a_narrow_tower_has_groups_of_two_channels_and_a_wide_one_32(channels, groups):
    norms = [m for m in CenterNetHead(channels, 2, 4, 0.01).modules() if isinstance(m, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [groups] * 4


def test_training_has_its_own_limits():
    network, features, heat, distances = make(1, pre_nms=100, post_nms=100, threshold=0.0)
    for level in distances:
        level.fill_(3.0)  # neighbours overlap by 0.71
    for mode, nms in ((True, 0.9), (False, 0.5)):
        found = network.train(mode)(features)[0][0]
        expected = decode(heat, distances, 0, 100, 100, 0.0, nms)
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _ in expected]))
        assert len(expected) == (54 if mode else len(found.boxes)) and len(found.boxes) > 5


def test_losses_are_divided_by_the_objects_of_a_mean_process(monkeypatch):
    network, features, _, _ = make(1)
    truth = GroundTruth.from_instances([objects([[4, 4, 30, 30]], [0], (48, 56))], torch.device("cpu"))
    _, alone = network(features, truth)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda counts: counts.mul_(4)
    )  # the other has three times as many
    _, losses = network(features, truth)
    assert [2 * loss.item() for loss in losses.values()] == pytest.approx(
        [loss.item() for loss in alone.values()]
    )


def test_predictions_of_half_precision_are_taken_in_float32():
    truth = GroundTruth.from_instances([objects([[4, 4, 30, 30]], [0], (48, 56))], torch.device("cpu"))
    found = []
    for kind in (torch.bfloat16, torch.float32):
        network, features, *predicted = make(1)
        network.centernet_head = Predictions(
            *([level.bfloat16().to(kind) for level in part] for part in predicted)
        )
        (proposals,), losses = network(features, truth)
        found.append([proposals.boxes, proposals.scores, *losses.values()])
    for half, single in zip(*found, strict=True):
        torch.testing.assert_close(half, single, atol=0, rtol=0)
