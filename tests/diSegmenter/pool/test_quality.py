"""The quality of a pool by round and class, against what is computed from its instances one by one."""

import numpy as np
import pytest

from diSegmenter.pool.diversity import mean_distance, near_duplicates, vendi_score
from diSegmenter.pool.quality import PoolQuality
from exchange import pool_features
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, write_index
from exchange.pool_rank import write_rank
from tests.diSegmenter.conftest import pool_instance

REASONS = ("", "", "", "too small", "CLIP score", "", "CLIP score")
NEAR = 0.9


@pytest.fixture
def layout(tmp_path):
    """Rounds 0, 1 and 3 with 40 instances of four classes in mixed order; class 2 skips round 1, class 9 is lone."""
    layout, rng = RunLayout(str(tmp_path / "run")), np.random.default_rng(0)
    for round_ in (0, 1, 3):
        rows = []
        for n in range(40):
            scores = {
                "clip_white": None if n % 9 == 0 else float(rng.normal(30, 5)),
                "clip_black": None if n % 9 < 3 else float(rng.normal(30, 5)),
                "similarity": None if n % 4 else float(rng.random()),
            }
            rows.append(
                pool_instance(
                    round_,
                    int(rng.choice([5, 7] if round_ == 1 else [2, 5, 7])),
                    n,
                    reason=REASONS[n % 7],
                    **scores,
                )
            )
        write_index(layout, round_, rows + ([pool_instance(3, 9, 0)] if round_ == 3 else []))
    return layout


def add_features(layout: RunLayout, round_: int, width: int = 4) -> dict[str, np.ndarray]:
    """In another order than the index; returns them by name."""
    names = PoolIndex(layout, [round_]).column("file").tolist()[::-1]
    vectors = np.random.default_rng(round_).normal(0.3, 1, (len(names), width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pool_features.begin(layout, {"model": "a"})
    pool_features.add_features(layout, round_, names, vectors)
    features = pool_features.PoolFeatures(layout, [round_])
    return dict(zip(names, features.read(features.rows(names)), strict=True))


@pytest.mark.parametrize("rounds", [[0], [1], [3], [0, 1, 3]])
@pytest.mark.parametrize("classes", [[2], [7], [9], [2, 5, 7, 9]])
def test_counts_reasons_and_scores_are_those_of_the_instances(layout, rounds, classes):
    every = [i for i in PoolIndex(layout, rounds, dropped_too=True) if i.category_id in classes]
    found = PoolQuality(layout, layout.pool_rounds()).of(
        rounds[0] if len(rounds) == 1 else None, classes[0] if len(classes) == 1 else None
    )
    kept = [i for i in every if not i.reason]
    assert (found.made, found.kept) == (len(every), len(kept))
    assert found.dropped == {r: sum(i.reason == r for i in every) for r in ("CLIP score", "too small")}
    for values, name in ((found.clip, "clip_score"), (found.similarity, "similarity")):
        known = [getattr(i, name) for i in kept if getattr(i, name) is not None]
        assert (values is None) == (not known)
        if known:
            assert values == pytest.approx(np.quantile(known, [0.05, 0.5, 0.95]))
    assert found.diversity is None


def test_similarities_that_the_index_lacks_are_those_of_the_ranks(layout):
    names = PoolIndex(layout, [1]).column("file").tolist()
    write_rank(layout, 1, "similarity", names[2:], np.full(len(names) - 2, 2.0), {})
    known = PoolIndex(layout, [1]).column("similarity")
    expected = np.where(np.isnan(known), 2.0, known)
    expected[:2] = known[:2]
    found = [PoolQuality(layout, layout.pool_rounds()).of(round_).similarity for round_ in (1, 0)]
    assert found[0] == pytest.approx(np.nanquantile(expected, [0.05, 0.5, 0.95])) and max(found[1]) < 1


def test_the_most_frequent_reason_comes_first(layout):
    assert PoolQuality(layout, layout.pool_rounds()).reasons == ["CLIP score", "too small"]


def test_diversity_is_that_of_the_features_of_each_class_by_round_and_with_former_rounds(layout):
    known = {round_: add_features(layout, round_) for round_ in (0, 1, 3)}
    quality = PoolQuality(layout, [0, 1, 3], NEAR)
    assert quality.unmeasured is None

    def features(rounds, category):
        names = [i.file for i in PoolIndex(layout, rounds) if i.category_id == category]
        return np.stack([known[int(name[:2])][name] for name in names]) if names else np.zeros((0, 4))

    def mean(values):
        return pytest.approx(np.mean([value for value in values if value is not None]), rel=1e-5)

    for place, round_ in enumerate((0, 1, 3)):
        former = [0, 1, 3][: place + 1]
        expected = []
        for category in (2, 5, 7, 9):
            own, pool = features([round_], category), features(former, category)
            repeats = near_duplicates(pool, NEAR)[len(pool) - len(own) :].sum()
            some = len(own) > 0
            expected.append((mean_distance(own), vendi_score(own) if some else None, repeats))
            found = quality.of(round_, category).diversity
            assert found.near_duplicates == repeats and (found.distance is None) == (len(own) < 2)
            if some:
                assert found.vendi == pytest.approx(vendi_score(own), rel=1e-5)
            if len(pool):
                assert found.pool_vendi == pytest.approx(vendi_score(pool), rel=1e-5)
        distances, scores, repeats = zip(*expected, strict=True)
        of_round = quality.of(round_).diversity
        assert (of_round.distance, of_round.vendi) == (mean(distances), mean(scores))
        assert of_round.near_duplicates == sum(repeats) > 0
        pools = [features(former, category) for category in (2, 5, 7, 9)]
        assert of_round.pool_vendi == mean([vendi_score(pool) for pool in pools if len(pool)])
    whole = [features([0, 1, 3], category) for category in (2, 5, 7, 9)]
    of_pool, of_class = quality.of().diversity, quality.of(category_id=5).diversity
    assert of_pool.distance == mean([mean_distance(pool) for pool in whole])
    assert of_pool.vendi == mean([vendi_score(pool) for pool in whole]) and of_pool.pool_vendi is None
    assert of_class.vendi == pytest.approx(vendi_score(whole[1]), rel=1e-5)
    assert of_class.near_duplicates == near_duplicates(whole[1], NEAR).sum()
    lone = quality.of(3, 9).diversity
    assert lone.distance is None and lone.vendi == pytest.approx(1) and lone.near_duplicates == 0


def test_what_repeats_the_former_round_adds_instances_and_no_diversity(layout, tmp_path):
    twice = RunLayout(str(tmp_path / "twice"))
    vectors = np.eye(6)
    pool_features.begin(twice, {"model": "a"})
    for round_ in (0, 1):
        rows = [pool_instance(round_, 2, n, reason="judge" * (n == 6)) for n in range(7)]
        write_index(twice, round_, rows)
        pool_features.add_features(twice, round_, [row.file for row in rows[:6]], vectors)
    found = [PoolQuality(twice, [0, 1]).of(round_) for round_ in (0, 1)]
    assert [of_round.near_duplicate_share for of_round in found] == [0, 100]
    first, second = (of_round.diversity for of_round in found)
    assert (first.near_duplicates, second.near_duplicates) == (0, 6)
    assert [d.pool_vendi for d in (first, second)] == pytest.approx([6, 6])


def test_diversity_is_known_up_to_the_first_round_with_an_instance_that_is_not_measured(layout):
    add_features(layout, 0)
    assert PoolQuality(layout, layout.pool_rounds()).unmeasured == 1
    add_features(layout, 3)
    quality = PoolQuality(layout, layout.pool_rounds())
    assert quality.unmeasured == 1
    known = [quality.of(round_).diversity is not None for round_ in (0, 1, 3, None)]
    assert known == [True, False, False, False]
    assert quality.of(0, 5).diversity and not quality.of(category_id=5).diversity


def test_of_a_class_that_the_pool_does_not_have_nothing_is_known(layout):
    found = PoolQuality(layout, layout.pool_rounds()).of(0, 8)
    assert (found.made, found.kept, found.clip, found.diversity) == (0, 0, None, None)
    assert set(found.dropped.values()) == {0}
