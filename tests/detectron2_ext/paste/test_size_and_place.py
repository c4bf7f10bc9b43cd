from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron2_ext.paste.build import _build_size
from detectron2_ext.paste.plan import (
    ClassSizes,
    StatisticalSize,
    UniformSize,
    adaptive_factors,
    class_sizes,
    draw_object_size,
    draw_position,
)
from exchange.config import REPOSITORY, load_config


def test_class_sizes_are_mean_and_deviation_of_the_root_of_the_area_share(small_lvis):
    contents = [(0, 64, 48, 8, 6), (0, 64, 48, 30, 20), (0, 100, 50, 10, 10), (1, 64, 48, 16, 12)]
    for category, width, height, box_width, box_height in contents:
        image = small_lvis.add_image(width, height)
        small_lvis.add_object(image, category, [1, 1, box_width, box_height])
        small_lvis.add_object(image, category, [0, 0, width, height], iscrowd=1)
    values = [
        np.array([(w * h / (W * H)) ** 0.5 for c, W, H, w, h in contents if c == category])
        for category in (0, 1)
    ]
    sizes = class_sizes(small_lvis.read())
    means, stds = [v.mean() for v in values], [v.std() for v in values]
    np.testing.assert_allclose(sizes.mean, [*means, np.mean(means)], rtol=1e-6)  # class 2 has no box
    np.testing.assert_allclose(sizes.std, [*stds, np.mean(stds)], rtol=1e-6, atol=1e-9)


def test_adaptive_factors_at_the_three_points():
    factors = adaptive_factors([0.0, 30.0, 60.0, None, 100.0, 10.0])  # mean 40
    assert factors[0] == pytest.approx(16) and factors[4] == pytest.approx(1 / 16) and factors[3] == 1
    assert adaptive_factors([20.0, 40.0, 60.0])[1] == pytest.approx(1)


aps = st.lists(st.one_of(st.none(), st.floats(0, 100)), min_size=1, max_size=30)


@given(aps)
def test_adaptive_factors_are_the_formula_and_fall_with_the_ap(box_ap):
    known = [value for value in box_ap if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    factors = adaptive_factors(box_ap)
    for value, factor in zip(box_ap, factors, strict=True):
        if value is None or not 0 < mean < 100:
            assert factor == 1
        elif value <= mean:
            assert factor == pytest.approx(16 ** (1 - value / mean), rel=1e-6)
        else:
            assert factor == pytest.approx(16 ** -((value - mean) / (100 - mean)), rel=1e-6)
    ordered = [
        factor for _, factor in sorted((v, -f) for v, f in zip(box_ap, factors, strict=True) if v is not None)
    ]
    assert ordered == sorted(ordered)


def test_sizes_follow_the_class_statistics_within_their_limits():
    size = StatisticalSize(ClassSizes(np.array([0.1, 0.02]), np.array([0.03, 0.001])), np.array([2.0, 40.0]))
    rng = np.random.default_rng(0)
    drawn = np.array([size(0, (480, 640), rng) for _ in range(20000)])
    assert drawn.mean() == pytest.approx(0.2, abs=0.001)
    assert drawn.std() == pytest.approx(0.03, abs=0.001)  # the factor is the mean's alone
    assert {size(1, (480, 640), rng) for _ in range(50)} == {0.5}  # 40 x 0.02 is over the limit
    plain = StatisticalSize(ClassSizes(np.array([0.2, 0.02]), np.array([0.03, 0.001])))
    assert plain(1, (100, 640), rng) == 0.1  # 10 pixels of the height
    assert plain(1, (200, 50), rng) == 0.05  # be it the longer side
    assert plain(1, (15, 640), rng) == 0.5  # of which there are too few


def test_classes_without_a_training_box_alone_may_have_sizes_of_a_range(small_lvis):
    image = small_lvis.add_image(64, 48)
    small_lvis.add_object(image, 0, [1, 1, 16, 12])  # always 0.25
    small_lvis.add_object(image, 1, [1, 1, 16, 12], iscrowd=1)  # counts as none
    cfg = load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"),
        ["INPUT.INST_POOL_SIZE", "statistics_or_uniform", "INPUT.INST_POOL_SIZE_RANGE", "[0.05, 0.3]"],
    )
    rule, rng = _build_size(cfg, small_lvis.read(), None, 0), np.random.default_rng(0)
    drawn = np.array([[rule(c, (480, 640), rng) for c in range(3)] for _ in range(2000)])
    np.testing.assert_allclose(drawn[:, 0], 0.25, rtol=1e-5)
    for of_class in (1, 2):
        np.testing.assert_allclose(
            np.quantile(drawn[:, of_class], [0, 0.5, 1]), [0.05, 0.175, 0.3], atol=0.01
        )


@pytest.mark.parametrize("size", ["statistics", "uniform", "native"])
def test_a_certain_area_is_that_of_every_object_whatever_the_size_rule(size):
    cfg = load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"),
        ["INPUT.INST_POOL_AREA_CERTAINTY", "0.7", "INPUT.INST_POOL_SIZE", size],
    )
    rule = _build_size(cfg, None, None, 0)
    assert {rule(c, (48, 640), np.random.default_rng(c)) for c in range(5)} == {0.7}  # not cut off at 0.5


def test_uniform_sizes_fill_their_range():
    rng = np.random.default_rng(0)
    drawn = [UniformSize(0.1, 0.4)(0, (480, 640), rng) for _ in range(5000)]
    np.testing.assert_allclose(np.quantile(drawn, [0, 0.5, 1]), [0.1, 0.25, 0.4], atol=0.01)


def drawn_sizes(cutout_size, area_root, image_size, count=3000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([draw_object_size(cutout_size, area_root, image_size, rng) for _ in range(count)])


def test_an_object_has_the_asked_area_and_a_jittered_aspect():
    sizes = drawn_sizes((200, 100), 0.25, (480, 640))
    areas, ratios = sizes.prod(axis=1), sizes[:, 1] / sizes[:, 0]
    np.testing.assert_allclose(areas, 0.25**2 * 480 * 640, rtol=0.03)
    assert ratios.min() > 0.39 and ratios.max() < 0.61
    np.testing.assert_allclose(np.quantile(ratios, [0.25, 0.5, 0.75]), [0.45, 0.5, 0.55], atol=0.01)


def test_a_native_object_keeps_its_number_of_pixels():
    np.testing.assert_allclose(drawn_sizes((40, 30), None, (480, 640)).prod(axis=1), 1200, rtol=0.07)


@pytest.mark.parametrize("image_size", [(40, 60), (60, 40)])
def test_a_target_under_five_pixels_or_as_large_as_the_image_is_dropped(image_size):
    shown, longer = set(), image_size.index(60)
    for seed in range(600):
        root = float(np.random.default_rng(seed + 1000).choice([0.1, 0.15, 0.7, 1.0]))
        ratio = image_size[1] / image_size[0] * np.random.default_rng(seed).uniform(0.8, 1.2)
        width = (root**2 * 40 * 60 * ratio) ** 0.5
        expected = int(width / ratio), int(width)
        dropped = min(expected) < 5 or expected[0] >= image_size[0] or expected[1] >= image_size[1]
        size = draw_object_size(image_size, root, image_size, np.random.default_rng(seed))
        assert size == (None if dropped else expected)
        shown.add((dropped, expected))
    assert any(not dropped and size[1 - longer] == 5 for dropped, size in shown)
    assert any(dropped and size[longer] == 60 and size[1 - longer] < 40 for dropped, size in shown)


def test_the_centre_is_anywhere_in_the_image():
    rng = np.random.default_rng(0)
    corners = np.array([draw_position((48, 64), (11, 20), rng) for _ in range(20000)])
    centers = corners + [10, 5.5]
    assert (centers.min(axis=0) >= -0.5).all() and (centers.max(axis=0) <= [64.5, 48.5]).all()
    corner = draw_position((48, 64), (11, 20), SimpleNamespace(uniform=lambda low, high: 0.3 * high))
    assert (np.abs(corner + np.array([10, 5.5]) - [0.3 * 64, 0.3 * 48]) <= 0.5).all()  # to the nearest pixel
    for axis, extent in enumerate((64, 48)):
        np.testing.assert_allclose(
            np.quantile(centers[:, axis] / extent, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015
        )
