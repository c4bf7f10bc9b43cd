"""Losses and gradients of the whole proposal generator against the method, written out in float64."""

import pytest
import torch
from network_scenes import objects, small_config
from test_centernet_targets import RANGES, SHAPES, oracle
from torch.nn import functional as F

from detectron2_ext.modeling import build_model
from detectron2_ext.modeling.centernet import HeatMapLoss
from detectron2_ext.modeling.roi_sampling import GroundTruth

METHOD = {
    "HM_FOCAL_ALPHA": 0.25,
    "HM_FOCAL_BETA": 4,
    "LOSS_GAMMA": 2,
    "SIGMOID_CLAMP": 1e-4,
    "IGNORE_HIGH_FP": 0.85,
    "POS_WEIGHT": 0.5,
    "NEG_WEIGHT": 0.5,
    "REG_WEIGHT": 1,
    "HM_MIN_OVERLAP": 0.8,
    "MIN_RADIUS": 4,
}
OTHERS = dict(zip(METHOD, (0.4, 3.0, 1.5, 0.01, 0.7, 0.3, 0.9, 2.0, 0.6, 9), strict=True))
OBJECTS = [[10, 12, 40, 50], [60, 5, 90, 30], [16, 16, 22, 22], [17, 17, 21, 23], [-30, -10, 12, 20]]
BATCHES = {"objects": [OBJECTS, [], [[0, 0, 96, 64]]], "no object": [[], []]}


def reference(settings, weights, features, batch):
    """The losses, from weights and features in float64; ``settings`` as ``METHOD``."""
    alpha, beta, gamma, clamp, ignored, *factors, min_overlap, min_radius = settings.values()
    heat, distances = [], []
    for level, hidden in enumerate(features):
        for conv, norm in (("0", "1"), ("3", "4")):
            weight, bias = weights[f"bbox_tower.{conv}.weight"], weights[f"bbox_tower.{conv}.bias"]
            hidden = F.conv2d(hidden, weight, bias, padding=1).unflatten(1, (32, -1))  # 32 groups
            variance, mean = torch.var_mean(hidden, (2, 3, 4), correction=0, keepdim=True)
            hidden = ((hidden - mean) / (variance + 1e-5).sqrt()).flatten(1, 2).permute(0, 2, 3, 1)
            hidden = hidden * weights[f"bbox_tower.{norm}.weight"] + weights[f"bbox_tower.{norm}.bias"]
            hidden = hidden.permute(0, 3, 1, 2).relu()
        heat.append(F.conv2d(hidden, weights["agn_hm.weight"], weights["agn_hm.bias"], padding=1).flatten(1))
        box = F.conv2d(hidden, weights["bbox_pred.weight"], weights["bbox_pred.bias"], padding=1)
        distances.append((box * weights[f"scales.{level}.scale"]).relu().flatten(2).mT)
    heat, distances = torch.cat(heat, 1).sigmoid().clamp(clamp, 1 - clamp), torch.cat(distances, 1)
    box_loss = positive = negative = 0 * heat.sum()
    num_centers = num_boxes = 0
    for image, boxes in enumerate(batch):
        target_heat, target_distances, centers = oracle(boxes, min_overlap, min_radius)
        p = heat[image]
        positive = positive - alpha * (p[centers].log() * (1 - p[centers]) ** gamma).sum()
        penalty = (1 - p).log() * p**gamma * (1 - torch.tensor(target_heat).double()) ** beta
        negative = negative - (1 - alpha) * penalty[p < ignored].sum()
        num_centers += len(centers)
        for cell, target in enumerate(target_distances):
            if target is not None:
                box_loss = box_loss + giou_loss(
                    distances[image, cell].unbind(), torch.tensor(target).double()
                )
                num_boxes += 1
    assert (heat > ignored).any() and (heat == clamp).any() and (distances == 0).any()
    losses = (box_loss / max(num_boxes, 1), positive / max(num_centers, 1), negative / max(num_centers, 1))
    factors = [factors[2], factors[0], factors[1]]
    return [factor * loss for factor, loss in zip(factors, losses, strict=True)]


def giou_loss(a, b):
    """Rezatofighi et al., 2019, on boxes given by distances from one point, with CenterNet2's ones."""
    area_a, area_b = (a[0] + a[2]) * (a[1] + a[3]), (b[0] + b[2]) * (b[1] + b[3])
    smaller, larger = torch.minimum(torch.stack(a), b), torch.maximum(torch.stack(a), b)
    intersection = (smaller[0] + smaller[2]) * (smaller[1] + smaller[3])
    hull = (larger[0] + larger[2]) * (larger[1] + larger[3])
    union = area_a + area_b - intersection
    return 1 - ((intersection + 1) / (union + 1) - (hull - union) / hull)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("settings", [METHOD, OTHERS], ids=["method", "others"])
def test_losses_and_gradients_are_the_formula(settings, batch):
    torch.manual_seed(0)
    configured = {} if settings is METHOD else {f"CENTERNET__{key}": value for key, value in settings.items()}
    ranges = {"CENTERNET__IN_FEATURES": "[p3, p4, p5]", "CENTERNET__SOI": RANGES}
    widths = {"FPN__OUT_CHANNELS": 64, "CENTERNET__NUM_BOX_CONVS": 2}
    network = build_model(small_config(**widths, **ranges, **configured)).proposal_generator
    for name, parameter in network.centernet_head.named_parameters():
        torch.nn.init.normal_(parameter, std=2.0 if "agn_hm" in name else 0.3)
    features = [torch.randn(len(batch), 64, *shape, requires_grad=True) for shape in SHAPES]
    truth = GroundTruth.from_instances(
        [objects(b, [0] * len(b), (64, 96)) for b in batch], torch.device("cpu")
    )
    proposals, losses = network(features, truth)
    assert not proposals[0].boxes.requires_grad and not proposals[0].scores.requires_grad
    names = list(dict(network.centernet_head.named_parameters()))
    exact = [tensor.detach().double().requires_grad_() for tensor in (*network.parameters(), *features)]
    weights = dict(zip(names, exact[: len(names)], strict=True))
    expected = reference(settings, weights, exact[len(names) :], batch)
    for part, wanted in zip(("loc", "agn_pos", "agn_neg"), expected, strict=True):
        loss = losses[f"loss_centernet_{part}"]
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5), part
        options = {"retain_graph": True, "materialize_grads": True}
        found = torch.autograd.grad(loss, [*network.parameters(), *features], **options)
        gradients = torch.autograd.grad(wanted, exact, **options)
        for name, single, gradient in zip([*names, "p3", "p4", "p5"], found, gradients, strict=True):
            atol = 1e-4 * gradient.abs().max().item()
            message = f"gradient of {part} by {name}"
            torch.testing.assert_close(single.double(), gradient, rtol=1e-3, atol=atol, msg=message)


def test_a_negative_as_sure_as_the_limit_is_ignored():
    """Only those below it count, so the limit itself, where a probability can be exactly it, does not."""
    logits, none = torch.tensor([[0.0, -1.0]]), torch.zeros(1, 0)
    loss = HeatMapLoss(0.5, 0.5, alpha=0.25, beta=4.0, gamma=2.0, clamp=1e-4, ignore_above=0.5)
    alone = loss(logits[:, 1:], torch.zeros(1, 1), none.long(), none)
    assert loss(logits, torch.zeros(1, 2), none.long(), none) == alone
