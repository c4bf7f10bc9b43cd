import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paste_oracle import paste, tight_box

from detectron2_ext.data.view import Scene, SceneObject, tighten
from detectron2_ext.paste.composite import (
    Occlusion,
    basic,
    overlay,
    resize_cutout,
)


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask of some kind, never empty: one pixel, a rectangle, an ellipse, noise."""
    mask = np.zeros((height, width), bool)
    kind = rng.integers(4)
    y1, x1 = rng.integers(height), rng.integers(width)
    y2, x2 = rng.integers(y1 + 1, height + 1), rng.integers(x1 + 1, width + 1)
    if kind == 1:
        mask[y1:y2, x1:x2] = True
    elif kind == 2:
        rows, columns = np.ogrid[:height, :width]
        mask |= ((rows - y1) / (y2 - y1)) ** 2 + ((columns - x1) / (x2 - x1)) ** 2 <= 1
    elif kind == 3:
        mask |= rng.random((height, width)) < 0.2
    mask[y1, x1] = True
    return mask


def random_objects(rng: np.random.Generator, count: int, height: int, width: int):
    objects = []
    for _ in range(count):
        mask = blob(rng, height, width)
        box = tight_box(mask) + rng.uniform(-0.5, 0.5, size=4)  # annotated boxes need not be those of masks
        objects.append((box, mask, int(rng.integers(1203)), 0))
    return objects


def scene_of(image: np.ndarray, objects) -> Scene:
    return Scene(
        image.copy(),
        [
            SceneObject(tuple(b), tighten(m.astype(np.uint8)), label, source)
            for b, m, label, source in objects
        ],
    )


def assert_equal_scenes(scene: Scene, image: np.ndarray, objects) -> None:
    np.testing.assert_array_equal(scene.image, image)
    instances = scene.instances()
    assert instances.gt_classes.tolist() == [label for _, _, label, _ in objects]
    assert instances.instance_source.tolist() == [source for *_, source in objects]
    boxes = np.array([box for box, *_ in objects], np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(instances.gt_boxes.numpy(), boxes)
    masks = np.array([mask for _, mask, *_ in objects], bool).reshape(-1, *image.shape[:2])
    np.testing.assert_array_equal(instances.gt_masks.to_full().numpy(), masks)


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 6))
@settings(max_examples=500, deadline=None)
def test_pasting_in_windows_equals_pasting_on_whole_canvases(seed, num_objects, num_pasted):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 70, size=2)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    objects = random_objects(rng, num_objects, height, width)
    scene = scene_of(image, objects)
    rule = [(10, 300), (2, 18), (0, 4900)][rng.integers(3)]
    for _ in range(num_pasted):
        h, w = rng.integers(1, 50, size=2)
        cutout = rng.integers(0, 256, (h, w, 4), dtype=np.uint8)
        cutout[..., 3] *= blob(rng, h, w)
        x, y = int(rng.integers(-w, width + 1)), int(rng.integers(-h, height + 1))
        class_index = int(rng.integers(1203))
        image, objects = paste(image, objects, cutout, x, y, class_index, *rule)
        overlay(scene, cutout, x, y, class_index, basic, Occlusion(*rule))
    assert_equal_scenes(scene, image, objects)


def one_object(height: int, width: int) -> Scene:
    mask = np.ones((height, width), bool)
    return scene_of(np.zeros((100, 100, 3), np.uint8), [(np.array([0, 0, width, height]), pad(mask), 5, 0)])


def pad(mask: np.ndarray) -> np.ndarray:
    canvas = np.zeros((100, 100), bool)
    canvas[: mask.shape[0], : mask.shape[1]] = mask
    return canvas


def opaque(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 4), 255, np.uint8)


def test_what_lies_outside_or_is_transparent_is_not_pasted():
    scene = one_object(20, 20)
    assert not overlay(scene, opaque(10, 10), 100, 0, 7, basic)
    assert not overlay(scene, opaque(10, 10) * np.array([1, 1, 1, 0], np.uint8), 0, 0, 7, basic)
    assert len(scene.objects) == 1 and not scene.image.any()
    assert overlay(scene, opaque(10, 10), -5, -5, 7, basic)
    assert scene.objects[-1].mask.crop.sum() == 25
    assert scene.objects[-1].box == (0, 0, 5, 5) and scene.objects[-1].source == 1


@pytest.mark.parametrize(
    ("rule", "stays"), [((14, 100), False), ((14, 99), True), ((15, 100), True), ((0, 100), False)]
)
def test_what_is_hidden_goes_if_its_box_moved_by_more_than_the_rule_s_and_no_more_pixels_are_left(
    rule, stays
):
    scene = one_object(20, 20)
    overlay(scene, opaque(20, 15), 0, 0, 7, basic, Occlusion(*rule))  # 15 columns go, 100 pixels stay
    assert [o.mask.crop.sum() for o in scene.objects] == ([100, 300] if stays else [300])


@pytest.mark.parametrize("size", [(10, 10), (31, 20), (90, 80), (200, 200), (5, 150)])
def test_resizing_a_cutout_skips_no_pixel(size):
    cutout = np.zeros((100, 100, 4), np.uint8)
    cutout[::2] = 200  # stripes that a resize without averaging would turn into bands
    resized = resize_cutout(cutout, size)
    assert resized.shape == (*size, 4)
    if size[0] <= 50 and size[1] <= 50:
        assert np.abs(resized.astype(int) - 100).max() <= 30


def test_resizing_keeps_what_one_side_has_room_for_and_interpolates():
    cutout = np.zeros((100, 100, 4), np.uint8)
    cutout[:, (np.arange(100) // 4) % 2 == 1] = 200
    assert resize_cutout(cutout, (5, 150))[2, :, 0].std() > 80  # the height shrinks, the width grows
    turned = np.ascontiguousarray(cutout.swapaxes(0, 1))
    np.testing.assert_array_equal(resize_cutout(turned, (100, 20))[:, 0], turned[:, 0])  # the width alone
    ramp = np.repeat(np.arange(0, 200, 20, dtype=np.uint8)[None, :, None], 10, 0).repeat(4, 2)
    assert len(set(resize_cutout(ramp, (10, 20))[0, :, 0].tolist())) == 20
