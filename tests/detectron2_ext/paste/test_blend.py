import numpy as np
import pytest

from detectron2_ext.paste.composite import BLENDS


def parts():
    rng = np.random.default_rng(0)
    window = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    cutout = rng.integers(0, 256, (20, 24, 4), dtype=np.uint8)
    mask = np.zeros((20, 24), np.uint8)
    mask[4:15, 6:20] = 1
    return window, cutout, mask


def test_basic_replaces_the_objects_pixels_and_no_other():
    window, cutout, mask = parts()
    expected = np.where(mask[..., None] == 1, cutout[..., :3], window)
    BLENDS["basic"](window, cutout, mask)
    np.testing.assert_array_equal(window, expected)


def test_alpha_is_the_weighted_mean():
    window, cutout, mask = parts()
    weight = (cutout[..., 3:].astype(np.float64) / 255) * mask[..., None]
    expected = np.rint(weight * cutout[..., :3] + (1 - weight) * window)
    BLENDS["alpha"](window, cutout, mask)
    assert np.abs(window.astype(int) - expected).max() <= 1  # float32 may round a half the other way
    assert (window != expected).mean() < 0.01


def test_gaussian_blends_over_two_pixels_on_either_side_of_the_border():
    window, cutout, mask = parts()
    window[:], cutout[..., :3] = 0, 200
    BLENDS["gaussian"](window, cutout, mask)
    row = window[9, :, 0].astype(int)
    assert (row[8:18] == 200).all() and (row[:4] == 0).all() and (row[22:] == 0).all()
    assert (np.diff(row[3:9]) > 0).all() and (np.diff(row[17:23]) < 0).all()
    assert row[5] + row[6] == pytest.approx(200, abs=1)


def test_gaussian_blends_at_the_edge_of_the_window_too():
    window, cutout, mask = parts()
    window[:], cutout[..., :3], mask[:] = 0, 200, 1
    BLENDS["gaussian"](window, cutout, mask)
    first, second = 11 / 16, 15 / 16  # what 1 4 6 4 1 has over an object that begins 0 and 1 pixels before
    assert window[9, :3, 0].tolist() == pytest.approx([200 * first, 200 * second, 200], abs=0.6)
    assert window[0, 0, 0] == pytest.approx(200 * first**2, abs=0.6)


def test_poisson_keeps_the_gradients_and_takes_the_surroundings():
    window, cutout, mask = parts()
    window[:] = 60
    ramp = np.arange(24) * 4
    cutout[..., :3] = 100 + ramp[None, :, None]
    mask[:] = 1
    mask[:, 12:] = mask[12:16, 4:8] = 0
    before = window.copy()
    BLENDS["poisson"](window, cutout, mask)
    np.testing.assert_array_equal(window[mask == 0], before[mask == 0])
    assert abs(int(window[10, 11, 0]) - 60) < 12  # next to the image it has the image's colour
    assert np.diff(window[10, 1:11, 0].astype(int)).mean() > 0  # and inside it still rises


def test_poisson_takes_each_colours_gradients_from_the_object_alone():
    window, cutout = np.full((40, 48, 3), 60, np.uint8), np.full((40, 48, 4), 100, np.uint8)
    window[12:28, 14:34] = np.random.default_rng(0).integers(
        0, 256, (16, 20, 3)
    )  # far below the object's edge
    cutout[14:26, 16:32, 0] = 150
    mask = np.pad(np.ones((32, 40), np.uint8), 4)
    BLENDS["poisson"](window, cutout, mask)
    expected = np.full((40, 48, 3), 60)
    expected[14:26, 16:32, 0] += 50
    np.testing.assert_allclose(window.astype(int), expected, atol=3)


@pytest.mark.parametrize("name", sorted(BLENDS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (5, 5), (9, 3)])
def test_every_blend_takes_objects_of_any_size_in_any_corner(name, shape):
    for whole in (True, False):
        window = np.full((*shape, 3), 50, np.uint8)
        cutout = np.full((*shape, 4), 150, np.uint8)
        mask = np.ones(shape, np.uint8)
        if not whole:
            mask[:] = 0
            mask[-1, -1] = 1
        BLENDS[name](window, cutout, mask)
        assert window.dtype == np.uint8 and window.shape == (*shape, 3)
