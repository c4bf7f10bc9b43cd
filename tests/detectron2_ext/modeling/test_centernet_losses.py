import math

import pytest
import torch

from detectron2_ext.modeling.centernet_losses import giou_distance_loss, heat_map_focal_loss


def focal(logits, heat, centers):
    """Zhou et al., 2019, equation 1, in float64, with CenterNet2's weights, clamp and ignored negatives."""
    probability = [min(max(1 / (1 + math.exp(-x)), 1e-4), 1 - 1e-4) for x in logits]
    positive = sum(-0.25 * math.log(probability[i]) * (1 - probability[i]) ** 2 for i in centers)
    negative = sum(
        -0.75 * math.log(1 - p) * p**2 * (1 - h) ** 4
        for p, h in zip(probability, heat, strict=True)
        if p < 0.85
    )
    return positive, negative


@pytest.mark.parametrize("centers", [[], [3], [3, 3, 17, 40]], ids=["no object", "one", "two in one cell"])
def test_heat_map_loss_is_the_formula(centers):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 50, generator=random) * 5
    logits[0, 40] = -30.0  # clamped
    heat = torch.rand(1, 50, generator=random)
    heat[0, centers] = 1.0
    index = torch.tensor([[*centers, 0]])  # padded with a cell that does not count
    counts = torch.tensor([[True] * len(centers) + [False]])
    positive, negative = heat_map_focal_loss(logits, heat, index, counts)
    expected = focal(logits[0].double().tolist(), heat[0].double().tolist(), centers)
    assert positive.item() == pytest.approx(expected[0], rel=1e-5)
    assert negative.item() == pytest.approx(expected[1], rel=1e-5)


def test_heat_map_loss_sums_over_images():
    random = torch.Generator().manual_seed(0)
    logits, heat = torch.randn(3, 20, generator=random), torch.rand(3, 20, generator=random)
    index, counts = torch.randint(0, 20, (3, 4), generator=random), torch.rand(3, 4, generator=random) > 0.5
    together = torch.stack(heat_map_focal_loss(logits, heat, index, counts))
    alone = [
        torch.stack(heat_map_focal_loss(*(t[n : n + 1] for t in (logits, heat, index, counts))))
        for n in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(alone).sum(0))


def giou_loss(a, b):
    """Rezatofighi et al., 2019, on boxes given by distances from one point, in float64."""
    area_a, area_b = (a[0] + a[2]) * (a[1] + a[3]), (b[0] + b[2]) * (b[1] + b[3])
    intersection = (min(a[0], b[0]) + min(a[2], b[2])) * (min(a[1], b[1]) + min(a[3], b[3]))
    hull = (max(a[0], b[0]) + max(a[2], b[2])) * (max(a[1], b[1]) + max(a[3], b[3]))
    union = area_a + area_b - intersection
    return 1 - ((intersection + 1) / (union + 1) - (hull - union) / hull)


def test_box_loss_is_the_formula_where_there_is_a_box():
    random = torch.Generator().manual_seed(0)
    predicted = torch.rand(2, 30, 4, generator=random) * 9
    predicted[0, 0] = 0.0  # a prediction without area
    targets = torch.rand(2, 30, 4, generator=random) * 9 + 0.01
    counts = torch.rand(2, 30, generator=random) > 0.5
    counts[0, 0] = True
    expected = sum(
        giou_loss(a, b)
        for a, b in zip(predicted[counts].double().tolist(), targets[counts].double().tolist(), strict=True)
    )
    assert giou_distance_loss(predicted, targets, counts).item() == pytest.approx(expected, rel=1e-5)


def test_box_loss_without_boxes_is_zero_and_differentiable():
    predicted = torch.zeros(1, 5, 4, requires_grad=True)
    loss = giou_distance_loss(predicted, torch.ones(1, 5, 4), torch.zeros(1, 5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert predicted.grad.abs().sum() == 0.0
