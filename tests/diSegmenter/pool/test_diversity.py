"""How different instances are, against the definitions in float64."""

import numpy as np
import pytest

from diSegmenter.pool import diversity
from diSegmenter.pool.diversity import mean_distance, near_duplicates, vendi_score


def vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors that lean to one side, as features of one class do: float32 (N, D)."""
    found = np.random.default_rng(seed).normal(0.4, 1, (count, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_distance_is_the_mean_of_one_less_the_cosine_over_all_pairs(count):
    some = vectors(count, 12)
    exact = some.astype(np.float64)
    pairs = [1 - exact[i] @ exact[j] for i in range(count) for j in range(i)]
    assert mean_distance(some) == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.parametrize("count, width", [(1, 6), (5, 12), (12, 12), (40, 12)])
def test_the_vendi_score_is_the_exponential_of_the_entropy_of_the_kernel_s_eigenvalues(
    monkeypatch, count, width
):
    some = vectors(count, width)
    kernel = some.astype(np.float64) @ some.astype(np.float64).T / count
    eigenvalues = np.linalg.eigvals(kernel).real
    entropy = -sum(value * np.log(value) for value in eigenvalues if value > 1e-12)
    sides: list[int] = []
    original = np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda matrix: sides.append(len(matrix)) or original(matrix))
    assert vendi_score(some) == pytest.approx(np.exp(entropy), rel=1e-6)
    assert sides == [min(count, width)]


def test_equal_instances_count_as_one_and_orthogonal_ones_each():
    assert vendi_score(np.repeat(vectors(1, 8), 30, 0)) == pytest.approx(1)
    assert vendi_score(np.eye(9)) == pytest.approx(9) and mean_distance(np.eye(9)) == pytest.approx(1)
    assert mean_distance(np.repeat(vectors(1, 8), 30, 0)) == pytest.approx(0, abs=1e-6)


def test_of_one_instance_the_distance_is_not_known_and_the_vendi_score_is_one():
    assert mean_distance(vectors(1, 5)) is None and vendi_score(vectors(1, 5)) == pytest.approx(1)


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_a_near_duplicate_is_one_that_an_earlier_one_is_near_whatever_is_compared_at_once(monkeypatch, rows):
    monkeypatch.setattr(diversity, "_ROWS", rows)
    some = vectors(9, 30)
    some[[3, 8]] = some[[1, 0]]
    some[5] = some[8] + 0.05 * some[2]  # near the one after it, which is as the first
    some[5] /= np.linalg.norm(some[5])
    assert np.flatnonzero(near_duplicates(some, 0.99)).tolist() == [3, 5, 8]
    cosines = some.astype(np.float64) @ some.T.astype(np.float64)
    for threshold in (0.2, 0.3, 0.5):
        expected = [max(cosines[i, :i], default=-1) >= threshold for i in range(9)]
        assert near_duplicates(some, threshold).tolist() == expected
    assert near_duplicates(np.eye(2)[[0, 0, 1]], 1.0).tolist() == [False, True, False]


def test_half_precision_changes_no_measure_by_a_thousandth():
    some = vectors(100, 768)
    half = some.astype(np.float16).astype(np.float32)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    assert mean_distance(half) == pytest.approx(mean_distance(some), rel=1e-3)
    assert vendi_score(half) == pytest.approx(vendi_score(some), rel=1e-3)
