import json
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from detectron2_ext.paste.build import build_pool
from detectron2_ext.paste.pool import ImagesWithMasks, IndexedCutouts, InstancePool, JoinedCutouts
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.images import BadImage

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


def test_the_index_of_a_run_gives_the_same_cutouts_as_images_and_masks(write_pool, index_of):
    path = write_pool(5)
    layout = index_of(path)
    cropped = InstancePool(IndexedCutouts(layout, [0, 1]), CATEGORY_IDS)
    whole = InstancePool(ImagesWithMasks.of_run(layout, [0, 1]), CATEGORY_IDS)
    expected = read(path)
    assert cropped.rounds.tolist() == [0, 0, 0, 1, 1] == whole.rounds.tolist()
    for index, original in enumerate((0, 2, 4, 1, 3)):
        assert cropped.categories[index] == expected.categories[original] == whole.categories[index]
        np.testing.assert_array_equal(cropped.load(index), expected.load(original))
        np.testing.assert_array_equal(whole.load(index), expected.load(original))
    assert InstancePool(ImagesWithMasks.of_run(layout, [0]), CATEGORY_IDS, crop=False).load(0).shape[0] == 48


def test_a_number_of_the_index_can_be_asked_for(write_pool, index_of):
    path = write_pool(5)
    pool = InstancePool(IndexedCutouts(index_of(path), [0, 1]), CATEGORY_IDS)
    assert pool.column("clip_white").tolist() == [20, 22, 24, 21, 23]
    with pytest.raises(UserError, match="which some instances of the pool lack"):
        pool.column("clip_black")
    with pytest.raises(UserError, match="choose class, clip_white"):
        pool.column("prompt")
    with pytest.raises(UserError, match="no index"):
        read(path).column("clip_white")


@pytest.mark.parametrize("largest", [True, False])
def test_of_images_with_masks_what_is_not_opaque_stays_out_and_so_do_smaller_parts(write_pool, largest):
    path = write_pool(1)
    alpha = np.zeros((48, 48), np.uint8)
    alpha[4:24, 4:34] = 129  # the largest outline, …
    alpha[8:20, 8:30] = 60  # … of fewer opaque pixels than the other part …
    alpha[30:46, 10:34] = 255
    alpha[0:2] = 128  # haze
    cv2.imwrite(str(path.parent / "segmented" / "00_0010_0000.png"), alpha)
    overrides = [
        "INPUT.USE_COPY_METHOD",
        "syn_copy",
        "INPUT.INST_POOL",
        "True",
        "INPUT.INST_POOL_FEED",
        "False",
    ]
    overrides += ["INPUT.INST_POOL_PATH", str(path), "INPUT.INST_POOL_ROOT", str(path.parent)]
    cfg = load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), [*overrides, "USE_LARGEST_PART", str(largest)]
    )
    found = build_pool(cfg, None, 0, SimpleNamespace(category_ids=CATEGORY_IDS)).load(0)[..., 3]
    expected = alpha[4:24, 4:34] if largest else np.where(alpha > 128, alpha, 0)[4:46, 4:34]
    np.testing.assert_array_equal(found, expected)  # what an outline encloses keeps its alpha


def test_joined_pools_are_one_after_the_other(write_pool, index_of):
    path = write_pool(5)
    layout = index_of(path)
    parts = [IndexedCutouts(layout, [1]), ImagesWithMasks.of_annotations(str(path), str(path.parent))]
    joined = InstancePool(JoinedCutouts(parts), CATEGORY_IDS)
    expected = read(path)
    assert len(joined) == 7 and joined.rounds.tolist() == [1, 1, -1, -1, -1, -1, -1]
    for index, original in enumerate((1, 3, 0, 1, 2, 3, 4)):
        assert joined.categories[index] == expected.categories[original]
        np.testing.assert_array_equal(joined.load(index), expected.load(original))
    assert joined.name(2) == expected.name(0)
    assert joined.instance(1) == expected.instance(3) and joined.instance(2) == f"1:{expected.instance(0)}"


def test_decoded_cutouts_stay_in_memory_where_the_pool_fits_and_none_does_where_it_does_not(write_pool):
    path = write_pool(3)
    size = sum(read(path).load(index).nbytes for index in range(3))
    pool, larger = read(path, cache_bytes=size), read(path, cache_bytes=size - 1)
    first, other = ([one.load(index) for index in range(3)] for one in (pool, larger))
    assert all(pool.load(index) is first[index] for index in (2, 0, 1))
    kept = [weakref.ref(cutout) for cutout in other]
    del other
    assert [reference() is None for reference in kept] == [True] * 3
    assert all((larger.load(index) == first[index]).all() for index in range(3))


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
    content["annotations"][0]["category_id"] = content["categories"][0]["id"] = 11
    content["annotations"] = content["annotations"][:1]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="category 11, which DATASETS.TRAIN does not know"):
        read(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="is not an LVIS or COCO annotation file"):
        read(path)
