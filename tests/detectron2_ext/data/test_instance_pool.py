import json

import cv2
import numpy as np
import pytest

from detectron2_ext.data.decode import BadImage
from detectron2_ext.data.pool import ImagesWithMasks, InstancePool
from exchange.errors import UserError

CATEGORY_IDS = np.array([10, 20, 30])


def read(path, **options) -> InstancePool:
    cutouts = ImagesWithMasks.of_annotations(str(path), str(path.parent))
    return InstancePool(cutouts, CATEGORY_IDS, **options)


def test_categories_are_class_indices(write_pool):
    pool = read(write_pool(5))
    assert len(pool) == 5 and pool.categories.tolist() == [0, 1, 2, 0, 1]


def test_a_cutout_is_the_tight_box_of_its_alpha(write_pool):
    path = write_pool(2)
    cutout = read(path).load(1)
    assert cutout.shape == (31, 31, 4) and cutout.dtype == np.uint8
    raw = cv2.imread(str(path.parent / "raw" / "00_0020_0001.png"))[..., ::-1]
    np.testing.assert_array_equal(cutout[..., :3], raw[9:40, 9:40])
    assert cutout[15, 15, 3] == 255 and cutout[0, 0, 3] == 0
    assert read(path, crop=False).load(1).shape == (48, 48, 4)


def test_the_mask_threshold_removes_faint_pixels(write_pool):
    path = write_pool(1)
    alpha = np.full((48, 48), 100, np.uint8)
    alpha[10:20, 10:30] = 200
    cv2.imwrite(str(path.parent / "segmented" / "00_0010_0000.png"), alpha)
    assert read(path).load(0).shape == (48, 48, 4)
    cutout = read(path, mask_threshold=128).load(0)
    assert cutout.shape == (10, 20, 4) and (cutout[..., 3] == 200).all()


def test_decoded_cutouts_stay_in_memory_up_to_the_limit(write_pool):
    path = write_pool(3)
    size = read(path).load(0).nbytes
    pool = read(path, cache_bytes=2 * size)
    first = [pool.load(index) for index in range(3)]
    assert pool.load(2) is first[2] and pool.load(1) is first[1]
    assert pool.load(0) is not first[0]  # it was pushed out
    np.testing.assert_array_equal(pool.load(0), first[0])


def test_a_damaged_a_missing_and_an_empty_cutout_are_bad(write_pool):
    path = write_pool(3)
    (path.parent / "raw" / "00_0010_0000.png").write_bytes(b"no image")
    (path.parent / "raw" / "00_0020_0001.png").unlink()
    cv2.imwrite(str(path.parent / "segmented" / "00_0030_0002.png"), np.zeros((48, 48), np.uint8))
    pool = read(path)
    for index, reason in enumerate(("not an image", "there is no file", "no pixel belongs")):
        with pytest.raises(BadImage, match=reason):
            pool.load(index)


def test_a_pool_of_other_categories_is_named(write_pool):
    path = write_pool(3)
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 11
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="category 11, which DATASETS.TRAIN does not know"):
        read(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="not a pool"):
        read(path)
