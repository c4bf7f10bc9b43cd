import numpy as np
import pycocotools.mask as coco_mask
import pytest

from detectron2_ext.data.dataset import DetectionDataset, RunLengths, class_frequencies
from exchange.errors import UserError


def test_records_hold_what_the_file_says(small_lvis):
    first = small_lvis.add_image(64, 48)
    second = small_lvis.add_image(32, 40)
    small_lvis.add_object(second, 2, [1, 2, 10, 20], iscrowd=1)
    small_lvis.add_object(first, 1, [5.5, 6, 7, 8.25])
    small_lvis.add_object(second, 0, [0, 0, 4, 4])
    dataset = small_lvis.read()
    assert len(dataset) == 2
    assert dataset.category_names == ["class 0", "class 1", "class 2"]
    record = dataset.record(0)
    assert (record.width, record.height, record.image_id) == (64, 48, first)
    assert record.file_name.endswith("set/0001.png")
    np.testing.assert_array_equal(record.boxes, [[5.5, 6, 12.5, 14.25]])
    assert record.crowd.tolist() == [False]
    record = dataset.record(1)
    assert record.classes.tolist() == [2, 0]  # in the order of the file
    assert record.crowd.tolist() == [True, False]
    polygon = dataset.segmentation(record.first_object)[0]
    np.testing.assert_array_equal(polygon, [[1, 2], [11, 2], [11, 22], [1, 22]])


def test_the_objects_of_an_image_stay_in_the_order_of_the_file_however_many_there_are(small_lvis):
    images = [small_lvis.add_image(400, 40) for _ in range(2)]
    for left in range(300):
        small_lvis.add_object(images[left % 3 % 2], 0, [left, 0, 4, 4])
    dataset = small_lvis.read()
    for image in (0, 1):
        expected = [left for left in range(300) if left % 3 % 2 == image]
        assert dataset.record(image).boxes[:, 0].tolist() == expected


def test_class_indices_follow_sorted_category_ids(small_lvis):
    small_lvis.categories = [{"id": 90, "name": "late"}, {"id": 7, "name": "early"}]
    image = small_lvis.add_image()
    small_lvis.add_object(image, 0, [0, 0, 9, 9])
    dataset = small_lvis.read()
    assert dataset.category_ids.tolist() == [7, 90]
    assert dataset.record(0).classes.tolist() == [1]


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_of_either_kind_keep_their_mask(small_lvis, compressed):
    image = small_lvis.add_image(12, 10)
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 3:9] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    counts = encoded["counts"].decode()
    if not compressed:
        flat = mask.T.reshape(-1)
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, len(flat)]).tolist()
    small_lvis.add_object(image, 0, [3, 2, 6, 3], segmentation={"size": [10, 12], "counts": counts})
    runs = small_lvis.read().segmentation(0)
    assert isinstance(runs, RunLengths)
    np.testing.assert_array_equal(coco_mask.decode({"size": list(runs.size), "counts": runs.counts}), mask)


def test_objects_that_cannot_be_learnt_are_left_out_and_counted(small_lvis, caplog):
    image = small_lvis.add_image()
    small_lvis.add_object(image, 0, [1, 1, 0, 5])  # no width
    small_lvis.add_object(image, 0, [1, 1, 5, 0])  # no height
    small_lvis.add_object(image, 0, [1, 1, 5, 5], segmentation=[[1, 1, 6, 6]])  # a polygon of two points
    small_lvis.add_object(image, 0, [1, 1, 5, 5], segmentation=[])
    small_lvis.add_object(image, 1, [1, 1, 5, 5])
    small_lvis.add_object(small_lvis.add_image(), 2, [1, 1, 5, 5])
    dataset = small_lvis.read()
    assert [dataset.record(index).classes.tolist() for index in range(2)] == [[1], [2]]
    assert "left out 4 of 6 objects" in caplog.text


def test_a_polygon_of_two_points_beside_a_whole_one_is_ignored(small_lvis):
    image = small_lvis.add_image()
    small_lvis.add_object(image, 0, [1, 1, 5, 5], segmentation=[[1, 1, 6, 6], [1, 1, 6, 1, 6, 6]])
    assert [len(polygon) for polygon in small_lvis.read().segmentation(0)] == [3]


def test_lvis_images_are_named_by_their_url(small_lvis):
    small_lvis.add_image()
    del small_lvis.images[0]["file_name"]
    small_lvis.images[0]["coco_url"] = "http://images.cocodataset.org/train2017/000000391895.jpg"
    assert small_lvis.read().path(0).endswith("set/train2017/000000391895.jpg")


@pytest.mark.parametrize(
    "root, path", [("", "a/b.jpg"), ("s3://photos/", "s3://photos/a/b.jpg"), ("/", "/a/b.jpg")]
)
def test_names_are_below_the_root_or_whole_paths_where_it_is_empty(small_lvis, root, path):
    small_lvis.add_image()
    small_lvis.images[0]["file_name"] = "a/b.jpg"
    small_lvis.write()
    assert DetectionDataset.read(str(small_lvis.path), root).path(0) == path


def test_an_image_without_a_name_and_an_annotation_without_a_box_are_named(small_lvis):
    image = small_lvis.add_image()
    small_lvis.add_object(image, 0, [1, 1, 5, 5])
    del small_lvis.annotations[0]["bbox"]
    with pytest.raises(UserError, match="annotation 1 has no 'bbox'"):
        small_lvis.read()
    del small_lvis.images[0]["file_name"]
    with pytest.raises(UserError, match=f"image {image} has no 'file_name'"):
        small_lvis.read()


def test_images_with_nothing_but_a_crowd_are_not_trained_on(small_lvis):
    for crowd in (1, 0, 1):
        small_lvis.add_object(small_lvis.add_image(), 0, [1, 1, 9, 9], iscrowd=crowd)
    small_lvis.add_image()
    assert small_lvis.read().trainable_images().tolist() == [1]


def test_class_frequencies_count_images_not_objects(small_lvis):
    for objects in ([0, 0, 1], [0], [2]):
        image = small_lvis.add_image()
        for category in objects:
            small_lvis.add_object(image, category, [1, 1, 9, 9])
    dataset = small_lvis.read()
    np.testing.assert_allclose(class_frequencies(dataset, np.arange(3)), [2 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(class_frequencies(dataset, [0, 1]), [1, 1 / 2, 0])


def test_dicts_speak_detectron2(filled_lvis):
    dataset = filled_lvis.read()
    first, *others = dataset.dicts()
    for place, other in enumerate(others, start=1):
        record = dataset.record(place)
        shown = [dataset.segmentation(record.first_object + n) for n in range(len(record.boxes))]
        assert [len(a["segmentation"][0]) for a in other["annotations"]] == [2 * len(one[0]) for one in shown]
        assert [a["segmentation"][0][:2] for a in other["annotations"]] == [
            one[0][0].tolist() for one in shown
        ]
    about = {"file_name": dataset.record(0).file_name, "image_id": 1, "height": 48, "width": 64}
    assert first == about | {"annotations": first["annotations"]}
    annotation = first["annotations"][-1]
    assert annotation["bbox"] == [10, 10, 30, 30] and annotation["bbox_mode"] == 0  # XYXY_ABS
    assert annotation["category_id"] == 2 and annotation["iscrowd"] == 0
    assert annotation["segmentation"] == [[10, 10, 30, 10, 30, 30, 10, 30]]
    runs = coco_mask.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
    segmentation = runs | {"counts": runs["counts"].decode()}
    filled_lvis.add_object(1, 0, [0, 0, 48, 48], segmentation=segmentation, iscrowd=1)
    crowd = filled_lvis.read().dicts()[0]["annotations"][-1]
    assert (crowd["iscrowd"], crowd["segmentation"]) == (1, runs)
