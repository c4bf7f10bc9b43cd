import numpy as np
import pycocotools.mask as coco_mask
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from detectron2_ext.data.dataset import RunLengths
from detectron2_ext.data.view import View, rasterize, tighten


@st.composite
def views(draw):
    scale = draw(st.floats(0.1, 3.0))
    scaled = max(1, int(40 * scale)), max(1, int(50 * scale))
    size = min(scaled[0], 48), min(scaled[1], 48)
    offset = tuple(draw(st.integers(0, full - part)) for full, part in zip(scaled, size, strict=True))
    return View(scale, scaled, offset, size, draw(st.booleans()))


coordinate = st.floats(-4, 56, width=32)
polygon = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9)


def full(mask, size):
    canvas = np.zeros(size, np.uint8)
    if mask is not None:
        x1, y1, x2, y2 = mask.box
        canvas[y1:y2, x1:x2] = mask.crop
        assert mask.crop[0].any() and mask.crop[-1].any() and mask.crop[:, 0].any() and mask.crop[:, -1].any()
    return canvas


@given(st.lists(polygon, min_size=1, max_size=3), views())
@settings(
    max_examples=300, deadline=None, derandomize=True
)  # ties along an edge are rare, but there are some
def test_a_window_of_polygons_equals_the_whole_canvas(polygons, view):
    polygons = [np.array(points, np.float32) for points in polygons]
    moved = [view.coordinates(points).reshape(-1).tolist() for points in polygons]
    fifths = 5 * np.concatenate(moved) + 0.5  # to which the rule rounds down: the last bit decides a tie
    assume(np.abs(fifths - fifths.round()).min() > 1e-9)
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, *view.size)))
    np.testing.assert_array_equal(full(rasterize(polygons, view), view.size), expected)


@given(st.integers(0, 2**20), views())
@settings(max_examples=100, deadline=None)
def test_run_lengths_take_the_nearest_pixel_as_detectron2_does(seed, view):
    mask = (np.random.default_rng(seed).random((40, 50)) < 0.3).astype(np.uint8)
    runs = RunLengths((40, 50), coco_mask.encode(np.asfortranarray(mask))["counts"])
    resized = np.asarray(Image.fromarray(mask).resize(view.scaled_size[::-1], Image.Resampling.NEAREST))
    top, left = view.offset
    expected = resized[top : top + view.size[0], left : left + view.size[1]]
    expected = expected[:, ::-1] if view.flip else expected
    np.testing.assert_array_equal(full(rasterize(runs, view), view.size), expected)


def test_an_object_outside_the_view_has_no_mask():
    view = View(1.0, (100, 100), (50, 50), (50, 50))
    assert rasterize([np.array([[1, 1], [20, 1], [20, 20]], np.float32)], view) is None


def test_tighten_keeps_the_place():
    mask = np.zeros((9, 8), np.uint8)
    mask[2:5, 3:7] = 1
    tight = tighten(mask, x=10, y=20)
    assert tight.box == (13, 22, 17, 25) and tight.crop.all()
    assert tighten(np.zeros((3, 3), np.uint8)) is None
