"""The plan of MRCA and X-Paste: whatever is drawn, in the size of its class, anywhere."""

import numpy as np

from detectron2_ext.data.view import REAL, ObjectMask, Scene, SceneObject
from detectron2_ext.paste.plan import Placement, Scattered


def test_each_instance_drawn_for_the_image_s_classes_gets_a_size_by_its_own_and_no_place_of_its_own():
    class_of = np.array([2, 0, 1, 2])
    asked = []

    def draws(k, image_classes, rng):
        asked.append(image_classes.tolist())
        return np.array([3, 1, k])

    def size(class_index, image_size, rng):
        asked.append((class_index, image_size))
        return class_index / 10

    mask = ObjectMask(np.ones((2, 3), np.uint8), (4, 5, 7, 7))
    objects = [SceneObject(mask.box, mask, class_index, REAL) for class_index in (1, 0)]
    scene = Scene(np.zeros((20, 30, 3), np.uint8), objects)
    placed = list(Scattered(class_of, draws, size)(scene, 2, np.random.default_rng(0)))
    assert placed == [Placement(3, 0.2, None), Placement(1, 0.0, None), Placement(2, 0.1, None)]
    assert asked == [[1, 0], (2, (20, 30)), (0, (20, 30)), (1, (20, 30))]
