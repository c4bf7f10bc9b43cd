"""Each criterion and its gradient against the formula in float64 NumPy."""

import numpy as np
import pytest
import torch

from generator.criteria import CRITERIA


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def sigmoid_entropy(z, c):
    p = 1 / (1 + np.exp(-z[c]))
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


FORMULAS = {
    "entropy": lambda z, c: -np.sum(softmax(z) * np.log(softmax(z))),
    "loss": lambda z, c: -np.log(softmax(z)[c]),
    "margin": lambda z, c: np.sort(softmax(z))[-2] - np.sort(softmax(z))[-1],
    "sigmoid_entropy": sigmoid_entropy,
}


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_values_and_gradients_follow_the_formula(name):
    random = np.random.default_rng(0)
    z, classes = random.normal(size=(5, 4)) * 2, np.array([0, 1, 2, 0, 1])
    logits = torch.tensor(z, requires_grad=True)
    values = CRITERIA[name](logits, torch.tensor(classes))
    expected = [FORMULAS[name](row, c) for row, c in zip(z, classes, strict=True)]
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-10)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    step = 1e-6
    for i, c in enumerate(classes):
        for j in range(4):
            up, down = z[i].copy(), z[i].copy()
            up[j] += step
            down[j] -= step
            slope = (FORMULAS[name](up, c) - FORMULAS[name](down, c)) / (2 * step)
            assert gradient[i, j] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_extreme_logits_give_finite_values_and_gradients(name):
    logits = torch.tensor([[1000.0, -1000.0, 0.0], [-1000.0, 0.0, 0.0]], requires_grad=True)
    values = CRITERIA[name](logits, torch.tensor([0, 0]))
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), logits)[0].isfinite().all()
