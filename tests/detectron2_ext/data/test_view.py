from unittest.mock import Mock

import numpy as np
import pytest

from detectron2_ext.data import view as view_module
from detectron2_ext.data.view import FitFlip, ResizeCropFlip, SceneReader, View, tighten, union


def draws(count: int, **options) -> list[View]:
    augmentation = ResizeCropFlip(640, (0.1, 2.0), **options)
    rng = np.random.default_rng(0)
    return [augmentation.draw((480, 640), rng) for _ in range(count)]


def test_the_size_is_that_of_efficientdets_jitter():
    for view in draws(500):
        assert view.scaled_size == (int(480 * view.scale), int(640 * view.scale))
        assert view.size == tuple(min(extent, 640) for extent in view.scaled_size)
        for offset, scaled in zip(view.offset, view.scaled_size, strict=True):
            assert 0 <= offset <= max(0, scaled - 640)


def test_scale_is_uniform_over_its_range_and_half_of_the_views_are_mirrored():
    views = draws(20000)
    scales = np.array([view.scale for view in views])
    assert scales.min() >= 0.1 and scales.max() <= 2.0
    np.testing.assert_allclose(np.quantile(scales, [0.25, 0.5, 0.75]), [0.575, 1.05, 1.525], atol=0.02)
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 0.015
    assert not any(view.flip for view in draws(100, flip_probability=0.0))


def test_the_crop_is_anywhere_in_both_directions_independently():
    room = [(v.offset, np.array(v.scaled_size) - 640) for v in draws(20000) if min(v.scaled_size) > 740]
    places = np.array([offset / free for offset, free in room])
    quantiles = np.quantile(places, [0.1, 0.5, 0.9], axis=0)
    np.testing.assert_allclose(quantiles, np.tile([[0.1], [0.5], [0.9]], 2), atol=0.02)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.03


def test_which_views_are_mirrored_does_not_depend_on_the_image_s_shape():
    flips = {
        tuple(ResizeCropFlip(640, (0.1, 2.0)).draw(shape, np.random.default_rng(n)).flip for n in range(40))
        for shape in ((480, 640), (640, 480), (64, 640), (9, 9))
    }
    assert len(flips) == 1


def test_an_image_is_resized_bilinearly():
    ramp = np.tile(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (4, 1, 3))
    expected = 10 * ((np.arange(40) + 0.5) / 2 - 0.5)
    for size in ((8, 40), (4, 40)):  # the height may be right already
        view = View(scale=2.0, scaled_size=size, offset=(0, 0), size=size)
        np.testing.assert_allclose(view.image(ramp)[3, 1:-1, 0], expected[1:-1], atol=1)


def test_a_portrait_image_fits_its_longer_side():
    view = ResizeCropFlip(100, (1.0, 1.0)).draw((400, 200), np.random.default_rng(0))
    assert view.scale == 0.25 and view.size == (100, 50)


@pytest.mark.parametrize("augmentation", [ResizeCropFlip(64, (0.1, 0.1)), FitFlip((64, 64), (0.1, 0.1))])
@pytest.mark.parametrize("size", [(1, 64), (64, 1)])
def test_of_the_narrowest_image_a_pixel_is_left(augmentation, size):
    view = augmentation.draw(size, np.random.default_rng(0))
    assert sorted(view.size) == [1, 6] and view.image(np.zeros((*size, 3), np.uint8)).shape == (*view.size, 3)


def test_a_union_has_the_pixels_of_any_mask_in_its_tight_box():
    canvases = np.zeros((3, 20, 30), np.uint8)
    canvases[0, 4:10, 5:25] = canvases[0, 9:16, 20:25] = 1
    canvases[1, 6:18, 3:7] = canvases[1, 17, 3:28] = 1  # its box has most of the first one's pixels
    canvases[2, 8, 8] = 1
    together = union([tighten(canvas) for canvas in canvases])
    assert together.box == (3, 4, 28, 18)
    np.testing.assert_array_equal(together.crop, canvases.max(axis=0)[4:18, 3:28])


@pytest.mark.parametrize("flip", [False, True])
def test_pixels_and_coordinates_move_alike(flip):
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:30, 50:60] = 255
    view = View(scale=2.0, scaled_size=(120, 160), offset=(30, 70), size=(64, 64), flip=flip)
    x1, y1, x2, y2 = view.boxes(np.array([[50, 20, 60, 30]], np.float32))[0]
    shown = view.image(image)[..., 0] > 127
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x1, y1, x2, y2)
    assert (x1, x2) == ((14, 34) if flip else (30, 50))


def test_an_image_is_decoded_no_larger_than_its_view_needs_and_changed_as_asked(small_lvis, monkeypatch):
    small_lvis.add_image(64, 48)
    read = Mock(return_value=np.zeros((12, 16, 3), np.uint8))
    monkeypatch.setattr(view_module, "read_image", read)
    change, rng = Mock(), np.random.default_rng(0)
    scene = SceneReader(small_lvis.read(), ResizeCropFlip(16, (1.0, 1.0)), [change])(0, rng)
    assert read.call_args.args[1:] == ((48, 64), 0.25)
    change.assert_called_once_with(scene, rng)


def test_the_objects_of_every_image_of_a_data_set_have_their_own_masks_and_classes(small_lvis):
    boxes = [[[2, 3, 10, 5], [20, 30, 30, 8], [50, 1, 7, 40]], [], [[0, 0, 5, 6], [9, 12, 40, 20]]]
    for of_image in boxes:
        image = small_lvis.add_image()
        for category, box in enumerate(of_image):
            small_lvis.add_object(image, category, box)
    whole = ResizeCropFlip(64, (1.0, 1.0), flip_probability=0.0)
    reader = SceneReader(small_lvis.read(), whole)
    for index, of_image in enumerate(boxes):
        objects = reader(index, np.random.default_rng(0)).objects
        assert [shown.class_index for shown in objects] == list(range(len(of_image)))
        for shown, (x, y, width, height) in zip(objects, of_image, strict=True):
            assert shown.mask.box == shown.box == (x, y, x + width, y + height) and shown.mask.crop.all()


@pytest.mark.parametrize("flip", [False, True])
def test_coordinates_of_float32_are_mapped_in_float64(flip):
    points = np.array([[0.1, 7.3], [33.3, 21.7]], np.float32)
    moved = View(scale=1 / 3, scaled_size=(20, 24), offset=(3, 5), size=(12, 16), flip=flip).coordinates(
        points
    )
    x, y = (points.astype(np.float64) / 3 - (5, 3)).T
    np.testing.assert_allclose(moved, np.stack([16 - x if flip else x, y], axis=1), rtol=0, atol=1e-12)


def test_an_object_whose_box_is_beside_or_below_the_view_is_left_out_whatever_its_polygon_shows(small_lvis):
    image = small_lvis.add_image()
    for place in ([70, 10], [10, 60], [10, 10]):
        small_lvis.add_object(image, 0, [*place, 10, 10], segmentation=[[10, 10, 20, 10, 20, 20, 10, 20]])
    reader = SceneReader(small_lvis.read(), ResizeCropFlip(64, (1.0, 1.0), flip_probability=0.0))
    assert [shown.box for shown in reader(0, np.random.default_rng(0)).objects] == [(10, 10, 20, 20)]


def test_boxes_are_cut_at_the_border():
    view = View(scale=1.0, scaled_size=(40, 60), offset=(0, 0), size=(40, 60))
    boxes = view.boxes(np.array([[-5, 10, 70, 60], [50, 5, 58, 45], [65, 60, 70, 70]], np.float32))
    np.testing.assert_array_equal(boxes, [[0, 10, 60, 40], [50, 5, 58, 40], [60, 40, 60, 40]])


@pytest.mark.parametrize("flip", [False, True])
def test_an_image_decoded_at_half_size_shows_the_same_view(flip):
    rng = np.random.default_rng(0)
    coarse = np.repeat(np.repeat(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), 16, 0), 16, 1)
    view = View(scale=0.25, scaled_size=(24, 32), offset=(4, 2), size=(20, 20), flip=flip)
    whole, half = view.image(coarse), view.image(np.ascontiguousarray(coarse[::2, ::2]))
    np.testing.assert_array_equal(whole, half)
