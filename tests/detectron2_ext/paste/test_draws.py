import pickle
from unittest.mock import Mock

import numpy as np
import pytest

from detectron2_ext.paste.plan import ClassDraws, RandomDraws, UniformDraws, WeightedDraws

NO_CLASSES = np.array([], dtype=np.int64)


def drawn(draws, positions, classes=NO_CLASSES) -> list[list[int]]:
    return [draws(k, classes, np.random.default_rng(k)).tolist() for k in positions]


def test_uniform_draws_every_instance_once_per_pass_in_a_new_order():
    sequence = sum(drawn(UniformDraws(37, seed=1, origin=100), range(100, 400)), [])
    passes = [sequence[start : start + 37] for start in range(0, len(sequence) - 37, 37)]
    assert len(passes) > 10
    assert all(sorted(one) == list(range(37)) for one in passes)
    assert passes[0] != passes[1]


def test_uniform_draws_one_or_two_per_image_equally_often():
    counts = [len(rows) for rows in drawn(UniformDraws(1000, seed=1, origin=0), range(20000))]
    assert set(counts) == {1, 2} and abs(np.mean(counts) - 1.5) < 0.015


def test_uniform_draws_do_not_depend_on_which_process_asks_nor_in_which_order():
    whole = drawn(UniformDraws(37, 1, 8), range(8, 308))
    parts = [pickle.loads(pickle.dumps(UniformDraws(37, 1, 8))) for _ in range(6)]  # 2 ranks x 3 workers
    assert [rows for k in range(8, 308) for rows in drawn(parts[k % 6], [k])] == whole
    assert drawn(UniformDraws(37, 1, 8), range(307, 7, -1)) == whole[::-1]


def test_uniform_draws_far_into_the_training_continue_the_same_pass(monkeypatch):
    monkeypatch.setattr(UniformDraws, "_BLOCK", 50)  # several blocks of counts
    sequence = sum(drawn(UniformDraws(500, 1, 7), range(7, 1007)), [])
    assert sorted(sequence[:500]) == list(range(500)) and sorted(sequence[500:1000]) == list(range(500))
    counts = [len(rows) for rows in drawn(UniformDraws(500, 1, 7), range(7, 107))]
    assert counts[:50] != counts[50:]
    later = drawn(UniformDraws(500, 1, 7), range(900, 1007))
    assert sum(later, []) == sequence[-sum(map(len, later)) :]


def test_uniform_draws_of_another_round_or_seed_differ():
    one = drawn(UniformDraws(500, 1, 0), range(100))
    for other in (
        drawn(UniformDraws(500, 2, 0), range(100)),
        drawn(UniformDraws(500, 1, 400), range(400, 500)),
    ):
        assert sum(one, [])[:100] != sum(other, [])[:100]  # in their order …
        assert list(map(len, one)) != list(map(len, other))  # … and in how many an image gets


@pytest.mark.parametrize(("counts", "mean"), [((1, 3), 1.5), ((0, 20), 9.5)])
def test_random_draws_take_each_instance_alike(counts, mean):
    rows = drawn(RandomDraws(10, counts), range(20000))
    assert {len(one) for one in rows} == set(range(*counts))
    assert np.mean([len(one) for one in rows]) == pytest.approx(mean, rel=0.02)
    share = np.bincount(np.concatenate(rows).astype(int), minlength=10) / sum(map(len, rows))
    np.testing.assert_allclose(share, 0.1, atol=0.005)


def test_class_draws_take_each_class_alike_and_each_of_its_instances():
    categories = np.array([4, 7, 4, 4, 9])
    rows = np.concatenate(drawn(ClassDraws(categories, (0, 20)), range(5000))).astype(int)
    share = np.bincount(rows, minlength=5) / len(rows)
    np.testing.assert_allclose(share, [1 / 9, 1 / 3, 1 / 9, 1 / 9, 1 / 3], atol=0.006)


def test_class_draws_among_the_images_classes_take_only_those_and_any_where_there_is_no_object():
    draws = ClassDraws(np.array([4, 7, 4, 9]), (0, 20), among_image_classes=True)
    assert set(sum(drawn(draws, range(200), np.array([4, 5])), [])) == {0, 2}
    assert sum(drawn(draws, range(200), np.array([5])), []) == []  # the pool has none of them
    assert set(sum(drawn(draws, range(200), np.array([], int)), [])) == {0, 1, 2, 3}


def test_weighted_draws_follow_the_weights():
    rows = np.concatenate(drawn(WeightedDraws(np.array([1.0, 0.0, 3.0, 4.0]), (1, 3)), range(8000)))
    np.testing.assert_allclose(np.bincount(rows, minlength=4) / len(rows), [0.125, 0, 0.375, 0.5], atol=0.012)


def test_an_instance_of_weight_0_is_not_drawn_where_the_number_falls_between_two_others():
    rng = Mock(integers=Mock(return_value=3), uniform=Mock(return_value=np.array([0.0, 1.0, 2.5])))
    draws = WeightedDraws(np.array([0.0, 1.0, 0.0, 2.0, 0.0]), (1, 3))
    assert draws(0, NO_CLASSES, rng).tolist() == [1, 3, 3]
