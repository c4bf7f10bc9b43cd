import cv2
import numpy as np

from diSegmenter.annotate import MaskCleaner, outline
from tests.diSegmenter.conftest import disc_image


def test_box_area_and_polygons_are_those_of_alpha_above_zero():
    alpha = np.zeros((30, 60), np.uint8)
    alpha[5:15, 8:20] = 1
    alpha[20:28, 10:19] = 255
    alpha[22:24, 13:15] = 0  # a hole stays inside the outer contour
    alpha[2:27, 35:60][disc_image(9, size=(25, 25))[..., 1] < 255] = 40
    alpha[25, 2:4] = alpha[26, 2] = 5  # the smallest polygon
    alpha[0, :2] = 9  # too thin for a polygon, but in box and area
    found = outline(alpha)
    assert found["bbox"] == [0, 0, 57, 28] and len(found["segmentation"]) == 4
    assert found["area"] == int((alpha > 0).sum())
    drawn = np.zeros_like(alpha)
    for polygon in found["segmentation"]:
        cv2.fillPoly(drawn, [np.array(polygon).reshape(-1, 1, 2)], 1)
    filled = (alpha > 0).astype(np.uint8)
    filled[22:24, 13:15], filled[0, :2] = 1, 0
    np.testing.assert_array_equal(drawn, filled)


def test_a_triangle_of_three_points_is_a_polygon_and_a_line_is_none():
    alpha = np.zeros((20, 20), np.uint8)
    alpha[4:9, 3:8] = np.tri(5)
    alpha[15, 2:9] = 1
    assert [len(polygon) for polygon in outline(alpha)["segmentation"]] == [6]


def test_haze_goes_and_only_the_largest_part_stays():
    alpha = np.full((20, 20), 100, np.uint8)
    alpha[1:11, 1:11] = 200
    alpha[13:18, 13:15] = 250
    alpha[19, :9] = 255
    cleaned, objects = MaskCleaner(floor=128, largest_component=True)(alpha)
    assert objects == 2  # a tenth of the largest is an object, less is a speck
    expected = np.zeros_like(alpha)
    expected[1:11, 1:11] = 200
    np.testing.assert_array_equal(cleaned, expected)


def test_parts_that_touch_at_a_corner_are_one():
    alpha = np.zeros((12, 12), np.uint8)
    alpha[:4, :4] = alpha[4:8, 4:8] = 129
    alpha[9:, :9] = 255
    cleaned, objects = MaskCleaner(floor=128, largest_component=True)(alpha)
    alpha[9:] = 0
    assert objects == 2 and np.array_equal(cleaned, alpha)


def test_every_part_above_the_floor_stays_if_asked():
    alpha = np.array([[0, 8, 9, 255], [0, 0, 0, 0], [40, 0, 0, 0]], np.uint8)
    cleaned, objects = MaskCleaner(floor=8, largest_component=False)(alpha)
    np.testing.assert_array_equal(cleaned, [[0, 0, 9, 255], [0, 0, 0, 0], [40, 0, 0, 0]])
    assert objects == 2


def test_an_empty_mask_has_no_object():
    cleaned, objects = MaskCleaner(128, True)(np.full((4, 5), 128, np.uint8))
    assert objects == 0 and not cleaned.any()
