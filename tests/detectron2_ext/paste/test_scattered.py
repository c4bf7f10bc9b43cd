"""The plan of MRCA and X-Paste: whatever is drawn, in the size of its class, anywhere."""

import numpy as np

from detectron2_ext.data.view import Scene
from detectron2_ext.paste.plan import Placement, Scattered


def test_each_instance_drawn_gets_a_size_by_its_class_and_no_place_of_its_own():
    class_of = np.array([2, 0, 1, 2])
    asked = []

    def draws(k, image_classes, rng):
        return np.array([3, 1, k])

    def size(class_index, image_size, rng):
        asked.append((class_index, image_size))
        return class_index / 10

    scene = Scene(np.zeros((20, 30, 3), np.uint8), [])
    placed = list(Scattered(class_of, draws, size)(scene, 2, np.random.default_rng(0)))
    assert placed == [Placement(3, 0.2, None), Placement(1, 0.0, None), Placement(2, 0.1, None)]
    assert asked == [(2, (20, 30)), (0, (20, 30)), (1, (20, 30))]
