import dataclasses
import io
import itertools
import json
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from detectron2_ext.data.images import decode_rgba, read_rgba
from detectron2_ext.paste import pool as pool_module
from detectron2_ext.paste.build import build_pool
from detectron2_ext.paste.composite import resize_cutout
from detectron2_ext.paste.pool import ImagesWithMasks, IndexedCutouts, InstancePool
from exchange import files
from exchange.config import REPOSITORY, load_config
from exchange.cutouts import encode_cutout
from exchange.errors import UserError
from exchange.images import BadImage, encode_png
from exchange.pool_index import PoolIndex, write_index
from tests.diSegmenter.conftest import pool_instance

CATEGORY_IDS = np.array([10, 20, 30])
DATASET = SimpleNamespace(category_ids=CATEGORY_IDS, category_names=["class 0", "class 1", "class 2"])


def read(path, **options) -> InstancePool:
    cutouts = ImagesWithMasks.of_annotations(str(path), str(path.parent))
    return InstancePool(cutouts, CATEGORY_IDS, **options)


def test_categories_are_class_indices(write_pool):
    path = write_pool(5)
    content = json.loads(path.read_text())
    content["images"].reverse()
    path.write_text(json.dumps(content))
    pool = read(path)
    assert len(pool) == 5 and pool.categories.tolist() == [0, 1, 2, 0, 1]
    names = [f"00_{10 * (n % 3 + 1):04}_{n:04}.png" for n in range(5)]
    assert [pool.instance(index) for index in range(5)] == names
    assert [pool.name(index) for index in range(5)] == [f"{path.parent}/raw/{name}" for name in names]


def test_a_cutout_is_the_tight_box_of_its_alpha(write_pool):
    path = write_pool(2)
    cutout = read(path).load(1)
    assert cutout.shape == (31, 31, 4) and cutout.dtype == np.uint8
    raw = cv2.imread(str(path.parent / "raw" / "00_0020_0001.png"))[..., ::-1]
    np.testing.assert_array_equal(cutout[..., :3], raw[9:40, 9:40])
    assert cutout[15, 15, 3] == 255 and cutout[0, 0, 3] == 0
    assert read(path, crop=False).load(1).shape == (48, 48, 4)
    cv2.imwrite(str(path.parent / "segmented/00_0020_0001.png"), np.zeros((48, 48), np.uint8))
    for crop in (False, True):
        with pytest.raises(BadImage, match=r"00_0020_0001\.png: no pixel belongs to the object"):
            read(path, crop=crop).load(1)


def test_the_mask_alone_says_where_the_object_is_be_it_one_pixel(write_pool):
    path = write_pool(1)
    raw, mask = np.full((48, 40, 4), 9, np.uint8), np.zeros((48, 40), np.uint8)
    mask[30, 20] = 200
    cv2.imwrite(str(path.parent / "raw/00_0010_0000.png"), raw)  # with an alpha channel of its own
    cv2.imwrite(str(path.parent / "segmented/00_0010_0000.png"), mask)
    assert read(path).load(0).tolist() == [[[9, 9, 9, 200]]]


def test_the_index_of_a_run_gives_the_same_cutouts_as_images_and_masks(write_pool, index_of):
    path = write_pool(5)
    layout = index_of(path)
    cropped = InstancePool(IndexedCutouts(layout, [0, 1]), CATEGORY_IDS)
    whole = InstancePool(ImagesWithMasks.of_run(layout, [0, 1]), CATEGORY_IDS)
    expected = read(path)
    for index, original in enumerate((0, 2, 4, 1, 3)):
        assert cropped.instance(index) == whole.instance(index) == expected.instance(original)
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
    found = build_pool(cfg, None, 0, DATASET).load(0)[..., 3]
    expected = alpha[4:24, 4:34] if largest else np.where(alpha > 128, alpha, 0)[4:46, 4:34]
    np.testing.assert_array_equal(found, expected)  # what an outline encloses keeps its alpha


def test_a_run_s_own_pool_and_a_finished_one_are_joined_one_after_the_other(
    write_pool, index_of, monkeypatch
):
    path = write_pool(5)
    layout = index_of(path)
    monkeypatch.chdir(path.parent)  # where a relative path does not begin
    settings = {
        "INPUT.USE_COPY_METHOD": "syn_copy",
        "INPUT.INST_POOL_FEED": "True",
        "SEGMENTER.LATEST_ROUND_ONLY": "True",
        "INPUT.INST_POOL": "True",
        "INPUT.INST_POOL_PATH": os.path.relpath(path, REPOSITORY),
        "INPUT.INST_POOL_ROOT": os.path.relpath(path.parent, REPOSITORY),
    }
    cfg = load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), list(itertools.chain(*settings.items()))
    )
    joined = build_pool(cfg, layout, 1, DATASET)
    expected = read(path)
    assert len(joined) == 7
    for index, original in enumerate((1, 3, 0, 1, 2, 3, 4)):
        assert joined.categories[index] == expected.categories[original]
        np.testing.assert_array_equal(joined.load(index), expected.load(original))
    assert os.path.samefile(joined.name(2), expected.name(0))
    assert joined.instance(1) == expected.instance(3) and joined.instance(2) == f"1:{expected.instance(0)}"


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (129, 33), (31, 200), (15, 15)])
def test_a_cutout_of_any_size_is_the_same_from_its_halves_and_nothing_larger_is_decoded(
    height, width, index_of, write_pool, monkeypatch
):
    layout = index_of(write_pool(5))
    whole = np.random.default_rng(height).integers(0, 256, (height, width, 4), np.uint8)
    row = dataclasses.replace(PoolIndex(layout, [0])[0], bbox=[0, 0, width, height], area=height * width)
    write_index(layout, 0, [dataclasses.replace(row, width=width, height=height, segmentation=[])])
    files.write_bytes(layout.pool(row.cutout), encode_cutout(whole, whole[..., 3], row.bbox))
    pool = InstancePool(IndexedCutouts(layout, [0]), CATEGORY_IDS)
    assert pool.size(0) == (height, width)
    np.testing.assert_array_equal(pool.load(0), whole)
    decoded = []
    monkeypatch.setattr(pool_module, "decode_rgba", lambda *a: decoded.append(a) or decode_rgba(*a))
    for size in itertools.product((5, height // 8, height // 4, height // 2, height, height + 9), repeat=2):
        size = max(size[0], 1), max(size[1] * width // height, 1)
        loaded = pool.load(0, size)
        np.testing.assert_array_equal(resize_cutout(loaded, size), resize_cutout(whole, size))
        is_small = loaded.shape[0] < 2 * size[0] or loaded.shape[1] < 2 * size[1]
        assert is_small or min(loaded.shape[:2]) < 32
        assert len(decoded) == (loaded.shape == whole.shape)
        decoded.clear()


def test_a_cutout_without_halves_is_read_as_before(index_of, write_pool):
    layout = index_of(write_pool(5))
    pool = InstancePool(IndexedCutouts(layout, [0]), CATEGORY_IDS)
    whole = pool.load(0)  # a PNG image, as in the oldest pools
    for size in (None, (5, 5)):
        np.testing.assert_array_equal(pool.load(0, size), whole)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "WEBP", lossless=True, exact=True)
    files.write_bytes(pool.name(0), buffer.getvalue())
    np.testing.assert_array_equal(pool.load(0, (5, 5)), whole)
    files.write_bytes(pool.name(0), buffer.getvalue() + b"half")
    with pytest.raises(BadImage, match=f"^{pool.name(0)}: 4 bytes of halves, not "):
        pool.load(0, (5, 5))


def test_a_cutout_of_another_size_than_its_index_says_or_without_its_file_is_bad(index_of, write_pool):
    layout = index_of(write_pool(5))
    write_index(layout, 2, [pool_instance(2, 10, 0, cutout="cutouts/0.png", bbox=[9, 9, 31, 20], height=48)])
    pool = InstancePool(IndexedCutouts(layout, [2]), CATEGORY_IDS)
    assert pool.size(0) == (20, 31)
    for height, width in ((31, 31), (20, 32)):
        files.write_bytes(pool.name(0), encode_png(np.zeros((height, width, 4), np.uint8)))
        with pytest.raises(BadImage, match=rf"{width} x {height} pixels, but by the index 31 x 20"):
            pool.load(0)
    files.remove(pool.name(0))
    with pytest.raises(BadImage, match="there is no file"):
        pool.load(0)


def test_a_whole_image_is_decoded_once_for_its_size_and_its_pixels(write_pool, monkeypatch):
    pool = read(write_pool(2))
    decoded = []
    monkeypatch.setattr(pool_module, "read_rgba", lambda path: decoded.append(path) or read_rgba(path))
    for index in (0, 1):
        assert pool.size(index) == pool.load(index, (5, 5)).shape[:2]
    assert decoded == [pool.name(0), pool.name(1)]
    assert pool.size(0) and not np.array_equal(pool.load(1), pool.load(0))  # and no other's is taken for it


def test_a_damaged_a_missing_and_an_empty_cutout_are_bad(write_pool):
    path = write_pool(4)
    (path.parent / "raw" / "00_0010_0000.png").write_bytes(b"no image")
    (path.parent / "raw" / "00_0020_0001.png").unlink()
    cv2.imwrite(str(path.parent / "segmented" / "00_0030_0002.png"), np.zeros((48, 48), np.uint8))
    cv2.imwrite(str(path.parent / "segmented" / "00_0010_0003.png"), np.full((36, 64), 255, np.uint8))
    pool = read(path)
    reasons = ("not an image", "there is no file", "no pixel belongs", "its alpha mask has another size")
    for index, reason in enumerate(reasons):
        with pytest.raises(BadImage, match=reason):
            pool.load(index)


def test_a_pool_of_other_categories_is_named(write_pool):
    path = write_pool(3)
    content = json.loads(path.read_text())
    content["annotations"][2]["category_id"] = content["categories"][2]["id"] = 11
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="category 11, which DATASETS.TRAIN does not know"):
        read(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="is not an LVIS or COCO annotation file"):
        read(path)
