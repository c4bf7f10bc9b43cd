import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ext.data.mapper import TestMapper, TestTransform, TrainMapper
from detectron2_ext.data.view import ResizeCropFlip, SceneReader
from detectron2_ext.paste.composite import RandomMirror, basic
from detectron2_ext.paste.pasters import PoolPaster
from detectron2_ext.paste.plan import Scattered, UniformDraws, UniformSize
from detectron2_ext.paste.pool import ImagesWithMasks, InstancePool
from exchange.images import BadImage

JITTER = ResizeCropFlip(64, (0.5, 1.5))
UPRIGHT = ResizeCropFlip(64, (1.0, 1.0), flip_probability=0.0)


def mapper_of(lvis, augmentation=JITTER, pasters=(), **options) -> TrainMapper:
    dataset = lvis.read()
    reader = SceneReader(dataset, augmentation)
    return TrainMapper(reader, dataset.trainable_images(), list(pasters), seed=5, **options)


def paster_of(path) -> PoolPaster:
    cutouts = ImagesWithMasks.of_annotations(str(path), str(path.parent))
    pool = InstancePool(cutouts, np.array([10, 20, 30]))
    plan = Scattered(pool.categories, UniformDraws(len(pool), 5, 0), UniformSize(0.4, 0.4))
    return PoolPaster(pool, plan, [RandomMirror()], [basic])


def test_an_unchanged_view_is_the_annotated_image(small_lvis):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image_id = small_lvis.add_image(64, 48, pixels)
    small_lvis.add_object(image_id, 1, [10.25, 5, 20, 8])  # the box stays that of the annotation
    small_lvis.add_object(image_id, 0, [0, 0, 60, 40], iscrowd=1)
    item = mapper_of(small_lvis, UPRIGHT)[9, 0]
    assert item["image"].dtype == torch.uint8
    np.testing.assert_array_equal(item["image"].permute(1, 2, 0).numpy(), pixels)
    assert (item["height"], item["width"], item["image_id"], item["stream_index"]) == (48, 64, image_id, 9)
    instances = item["instances"]
    assert instances.gt_boxes.tolist() == [[10.25, 5, 30.25, 13]] and instances.gt_classes.tolist() == [1]
    expected = torch.zeros(1, 48, 64, dtype=torch.bool)
    expected[0, 5:13, 10:30] = True
    assert torch.equal(instances.gt_masks.to_full(), expected)
    assert instances.instance_source.tolist() == [0] and item["paste_info"] == [] == item["skipped"]


def test_an_item_depends_on_its_place_in_the_stream_alone(filled_lvis, write_pool):
    path = write_pool(7)
    one = mapper_of(filled_lvis, pasters=[paster_of(path)])
    other = mapper_of(filled_lvis, pasters=[paster_of(path)])
    items = {k: one[k, k % 12] for k in range(20)}
    assert all(item["image"].shape == (3, item["height"], item["width"]) for item in items.values())
    for k in reversed(range(20)):
        again = other[k, k % 12]
        assert torch.equal(again["image"], items[k]["image"])
        assert torch.equal(again["instances"].gt_boxes, items[k]["instances"].gt_boxes)
        assert again["paste_info"] == items[k]["paste_info"]
    assert not torch.equal(one[0, 0]["image"], one[20, 0]["image"])


def test_what_is_pasted_is_independent_of_the_view(filled_lvis):
    drawn = []
    draw = [lambda scene, k, rng, skipped: drawn.append(rng.random()) or []]
    mapper = mapper_of(filled_lvis, pasters=2 * draw)  # whose numbers differ
    widths = [mapper[k, 0]["width"] for k in range(300)]  # one image, whose width is its drawn scale
    assert len(set(widths)) > 20
    assert np.abs(np.corrcoef([widths, drawn[::2], drawn[1::2]]) - np.eye(3)).max() < 0.15


def test_an_image_that_cannot_be_read_is_replaced_by_the_same_one_every_time(filled_lvis):
    (filled_lvis.folder / "0003.png").write_bytes(b"damaged")
    mapper = mapper_of(filled_lvis)
    item = mapper[7, 2]
    assert item["image_id"] != 3 and len(item["skipped"]) == 1 and "0003.png" in item["skipped"][0]
    again = mapper_of(filled_lvis)[7, 2]
    assert again["image_id"] == item["image_id"] and torch.equal(again["image"], item["image"])


def test_a_replacement_is_drawn_anew_until_one_can_be_read_among_the_images_to_train_on(filled_lvis):
    filled_lvis.annotations = [one for one in filled_lvis.annotations if one["image_id"] != 9]
    for _ in range(12):
        filled_lvis.add_image()  # without an object
    for number in range(1, 9):
        (filled_lvis.folder / f"{number:04}.png").write_bytes(b"damaged")
    mapper = mapper_of(filled_lvis)
    assert {mapper[k, 0]["image_id"] for k in range(30)} == {10, 11, 12}


def test_a_size_other_than_annotated_counts_as_an_image_that_cannot_be_read(filled_lvis):
    Image.new("RGB", (20, 20)).save(filled_lvis.folder / "0003.png")
    assert "20 x 20 pixels, but the annotations say 72 x 48" in mapper_of(filled_lvis)[0, 2]["skipped"][0]


def test_no_readable_image_at_all_is_an_error(filled_lvis):
    for path in filled_lvis.folder.glob("*.png"):
        path.write_bytes(b"damaged")
    (filled_lvis.folder / "0001.png").unlink()
    with pytest.raises(BadImage, match="20 images in a row .*because .*: not an image, or damaged$"):
        mapper_of(filled_lvis)[0, 0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 48), (32, 24)),
        ((300, 48), (60, 10)),
        ((48, 64), (24, 32)),
        ((50, 31), (39, 24)),
        ((31, 50), (24, 39)),
    ],
)
def test_test_images_are_resized_by_their_shorter_side(small_lvis, size, expected):
    small_lvis.add_image(*size)
    mapper = TestMapper(small_lvis.read(), TestTransform(min_size=24, max_size=60))
    item = mapper[0]
    assert item["image"].shape == (3, expected[1], expected[0])
    assert (item["width"], item["height"]) == size
    pixels = Image.open(small_lvis.folder / "0001.png").resize(expected, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(item["image"].permute(1, 2, 0).numpy(), np.asarray(pixels))
