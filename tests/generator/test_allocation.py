"""How many images each class gets: method.md's formula, exactly and whatever the input."""

import sys
from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from exchange.errors import UserError
from generator import allocation as module
from generator.allocation import Allocation, AllocationRule, allocate, as_text, save_report, table_rows

NAN = float("nan")
patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no failure


def ids(n):
    return np.arange(1, n + 1)


def shares(rule, counts, drift=None, ap=None):
    as_array = [None if v is None else np.array(v, dtype=float) for v in (drift, ap)]
    return allocate(rule, ids(len(counts)), np.array(counts), *as_array).share


def test_share_is_the_product_of_rarity_drift_and_ap():
    weight = np.array([1 / 2 * 3 * 10, 1 / 4 * 5 * 20, 1 / 8 * 1 * 40])
    np.testing.assert_allclose(
        shares(AllocationRule(), [2, 4, 8], [3, 5, 1], [10, 20, 40]), weight / weight.sum()
    )


@pytest.mark.parametrize(
    ("rule", "weight"),
    [
        (AllocationRule(frequency_exponent=0), [3 * 10, 5 * 20, 1 * 40]),
        (AllocationRule(drift_exponent=0), [10 / 2, 20 / 4, 40 / 8]),
        (AllocationRule(ap_mode="off"), [3 / 2, 5 / 4, 1 / 8]),
        (AllocationRule(ap_mode="inverse"), [3 / 2 / 10, 5 / 4 / 20, 1 / 8 / 40]),
        (AllocationRule(ap_mode="inverse", ap_exponent=2), [3 / 2 / 10**2, 5 / 4 / 20**2, 1 / 8 / 40**2]),
        (AllocationRule(frequency_exponent=0.5), [30 / 2**0.5, 100 / 2, 40 / 8**0.5]),
        (
            AllocationRule(drift_exponent=2, ap_exponent=0.5),
            [9 / 2 * 10**0.5, 25 / 4 * 20**0.5, 1 / 8 * 40**0.5],
        ),
    ],
)
def test_each_factor_has_its_own_switch_and_exponent(rule, weight):
    np.testing.assert_allclose(
        shares(rule, [2, 4, 8], [3, 5, 1], [10, 20, 40]), np.array(weight) / sum(weight)
    )


@pytest.mark.parametrize("ap_mode", ["proportional", "inverse"])
def test_class_without_ap_or_drift_takes_the_mean_of_the_others(ap_mode):
    rule = AllocationRule(ap_mode=ap_mode)
    given_nan = shares(rule, [2, 4, 8, 1], [NAN, 5, 1, 9], [10, NAN, 40, 10])
    known = shares(rule, [2, 4, 8, 1], [5, 5, 1, 9], [10, 20, 40, 10])
    np.testing.assert_allclose(given_nan, known)


@pytest.mark.parametrize("nothing", [[NAN] * 3, [0.0] * 3, None])
@pytest.mark.parametrize(
    ("drift", "ap", "weight"),
    [
        (None, None, [1 / 2, 1 / 4, 1 / 8]),
        ([3, 5, 1], None, [3 / 2, 5 / 4, 1 / 8]),
        (None, [10, 20, 40], [10 / 2, 20 / 4, 40 / 8]),
    ],
)
def test_factor_that_tells_no_two_classes_apart_is_left_out_and_the_others_count(nothing, drift, ap, weight):
    given = shares(AllocationRule(), [2, 4, 8], drift or nothing, ap or nothing)
    np.testing.assert_allclose(given, np.array(weight) / sum(weight))


def test_factors_that_together_spare_every_class_are_left_out():
    np.testing.assert_allclose(shares(AllocationRule(), [2, 4], [0, 1], [1, 0]), [2 / 3, 1 / 3])


def test_zero_ap_is_finite_in_inverse_mode():
    np.testing.assert_allclose(
        shares(AllocationRule(ap_mode="inverse"), [1, 1], ap=[0, 50]), [50 / 51, 1 / 51]
    )


def test_class_without_training_instances_counts_as_having_one():
    np.testing.assert_allclose(shares(AllocationRule(), [0, 1]), [0.5, 0.5])


def test_largest_remainder_gets_the_image_and_the_lower_id_in_a_tie():
    rule = AllocationRule(per_class=1)
    # shares of 3 images: 1.636, 0.818, 0.545
    assert allocate(rule, ids(3), np.array([1, 2, 3])).images.tolist() == [2, 1, 0]
    assert allocate(AllocationRule(per_class=2), np.array([7, 3]), np.array([1, 1])).images.tolist() == [2, 2]
    # 8 images for four classes of 1/N = 1, 1, 1, 1/7: three remainders tie at .545
    images = allocate(AllocationRule(per_class=2), np.array([9, 2, 5, 1]), np.array([1, 1, 1, 7])).images
    assert images.tolist() == [2, 3, 3, 0]
    # 1.4, 0.4 and 1.2 images: of equal remainders that of the larger share, whatever its id
    images = allocate(rule, np.array([9, 5, 1]), np.array([1, 1, 1]), np.array([7, 2, 6])).images
    assert images.tolist() == [2, 0, 1]
    # 1.4 / 2 and 3.5 / 5 differ in their last bit only, so that this is a tie, too
    images = allocate(rule, ids(3), np.array([2, 5, 1]), np.array([1.4, 3.5, 1 / 7])).images
    assert images.tolist() == [2, 1, 0]
    no_tie = np.array([1.5, 0.5 + 1e-7])
    assert module.largest_remainder(no_tie, 2, ids(2)).tolist() == [1, 1]


@pytest.mark.parametrize("how", [{"balanced": True}, {"minimum": 4, "maximum": 4}])
def test_every_class_gets_the_same_when_asked_or_bound_to(how):
    division = allocate(AllocationRule(per_class=4, **how), ids(3), np.array([1, 9, 99]))
    assert division.images.tolist() == [4, 4, 4] and division.share.sum() == pytest.approx(1)


def test_bounds_hold_and_what_they_cut_off_goes_to_the_others_in_proportion():
    rule = AllocationRule(per_class=10, minimum=2, maximum=20)
    images = allocate(rule, ids(4), np.array([1, 10, 20, 1000])).images
    # 40 images: the first would get 34 and gets 20, the last 0 and gets 2; 18 remain in proportion 2 : 1
    assert images.tolist() == [20, 12, 6, 2]


@pytest.mark.parametrize(
    "wrong",
    [{"ap_mode": "up"}, {"minimum": 5}, {"maximum": 3}, {"maximum": 0}, {"per_class": 0}]
    + [{f"{factor}_exponent": -1.0} for factor in ("frequency", "drift", "ap")],
)
def test_impossible_rule_is_refused(wrong):
    with pytest.raises(ValueError):
        AllocationRule(**{"per_class": 4, **wrong})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_factors_beyond_float64_are_an_error_and_no_share():
    with pytest.raises(UserError, match="exponents"):
        allocate(AllocationRule(drift_exponent=17.0), np.arange(2), np.ones(2, int), np.array([1.0, 9e18]))


@st.composite
def problems(draw):
    n = draw(st.integers(1, 40))
    value = st.one_of(st.just(NAN), st.just(0.0), st.floats(0, 100))
    rule = AllocationRule(
        per_class=draw(st.integers(3, 9)),
        ap_mode=draw(st.sampled_from(["off", "proportional", "inverse"])),
        minimum=draw(st.integers(0, 3)),
        maximum=draw(st.one_of(st.none(), st.integers(9, 20))),
    )
    lists = [st.lists(st.integers(0, 10**6), min_size=n, max_size=n)]
    lists += [st.lists(value, min_size=n, max_size=n)] * 2
    counts, drift, ap = (np.array(draw(each)) for each in lists)
    return rule, draw(st.permutations(range(1, n + 1))), counts, drift.astype(float), ap.astype(float)


@patient
@given(problems())
def test_sums_are_exact_and_bounds_hold_whatever_the_factors(problem):
    rule, category_ids, counts, drift, ap = problem
    images = allocate(rule, np.array(category_ids), counts, drift, ap).images
    assert images.sum() == rule.per_class * len(counts)
    assert images.min() >= rule.minimum
    assert rule.maximum is None or images.max() <= rule.maximum


@patient
@given(problems(), st.randoms())
def test_order_of_the_classes_does_not_matter(problem, random):
    rule, category_ids, counts, drift, ap = problem
    order = list(range(len(counts)))
    random.shuffle(order)
    images = allocate(rule, np.array(category_ids), counts, drift, ap).images
    shuffled = allocate(rule, np.array(category_ids)[order], counts[order], drift[order], ap[order]).images
    assert shuffled.tolist() == images[order].tolist()


def test_twenty_thousand_classes_with_every_bound_in_use():
    random = np.random.default_rng(0)
    counts = (random.pareto(0.5, 20_000) * 10).astype(int)
    rule = AllocationRule(minimum=1, maximum=40)
    images = allocate(rule, ids(20_000), counts, random.random(20_000), random.random(20_000) * 100).images
    assert images.sum() == 80_000
    assert (images.min(), images.max()) == (1, 40)


def test_the_table_has_the_most_images_first_and_nothing_where_drift_or_ap_is_unknown():
    names = {7: "dog", 3: "cat", 12: "cow", 8: "hen"}
    division = Allocation(np.array([0.125, 0.125, 0.375, 0.375]), np.array([1, 3, 1, 1]))
    counts, drift = np.array([5, 9, 10, 0]), np.array([12.3456, NAN, 0.5, 100])
    ap = np.array([NAN, 20.126, 5, 0])
    rows = table_rows(names, counts, drift, ap, division)
    assert as_text(rows).splitlines() == [
        "id  class   N  drift     AP     share  images",
        " 7    dog   9         20.13  0.125000       3",
        " 8    hen  10    0.5   5.00  0.375000       1",
        "12    cow   0    100   0.00  0.375000       1",
        " 3    cat   5  12.35         0.125000       1",
    ]
    unknown = table_rows(names, counts, None, None, division)
    assert unknown == [rows[0], *((*row[:3], "", "", *row[5:]) for row in rows[1:])]


def test_without_matplotlib_the_table_is_saved_and_a_line_says_what_is_left_out(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    caplog.set_level("INFO")
    save_report(str(tmp_path / "x"), [("id", "N", "images"), ("1", "2", "3")])
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    assert caplog.messages == [f"{tmp_path}/x.png is left out: matplotlib is not installed"]


def test_the_plot_has_the_images_of_each_class_above_its_training_instances(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    allocation = Allocation(np.array([0.75, 0.25]), np.array([9, 2]))
    rows = table_rows({1: "cat", 2: "dog"}, np.array([5, 70]), None, None, allocation)
    save_report(str(tmp_path / "x"), rows)
    (axes,) = drawn
    assert axes.collections[0].get_offsets().tolist() == [[5, 9], [70, 2]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training instances of a class", "images to draw")
    assert axes.get_xscale() == "symlog"  # which has a place for 0


def test_the_plot_is_drawn_again_only_where_it_is_missing_or_of_another_table(tmp_path, monkeypatch):
    names, drift, ap = {1: "cat", 2: "dog"}, np.ones(2), np.full(2, 30.0)
    allocation = allocate(AllocationRule(per_class=5), ids(2), np.array([3, 5]), drift, ap)
    path, rows = str(tmp_path / "x"), table_rows(names, np.array([3, 5]), drift, ap, allocation)
    for change, drawn in (
        (lambda: None, True),
        (lambda: None, False),
        (lambda: rows.append(rows[-1]), True),
        ((tmp_path / "x.png").unlink, True),
        ((tmp_path / "x.csv").unlink, True),
    ):
        change()
        before = (tmp_path / "x.png").stat().st_ino if (tmp_path / "x.png").exists() else None
        save_report(path, rows)
        assert ((tmp_path / "x.png").stat().st_ino != before) == drawn
        assert (tmp_path / "x.csv").read_text().splitlines() == [",".join(row) for row in rows]
    monkeypatch.setattr(module, "_plot", Mock(side_effect=[KeyboardInterrupt, b"drawn"]))
    for stopped in (pytest.raises(KeyboardInterrupt), nullcontext()):
        with stopped:
            save_report(path, rows[:-1])
    assert (tmp_path / "x.png").read_bytes() == b"drawn"
