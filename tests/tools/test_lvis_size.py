import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exchange.annotations import frequency, read_annotations
from exchange.catalog import builtin_datasets
from tools.benchmarks.lvis_size import CLASSES, image_counts, write_lvis


def test_classes_are_as_frequent_as_in_lvis():
    groups = [frequency(count) for count in image_counts().tolist()]
    # LVIS v1 (Gupta et al. 2019, as released): 337 rare, 461 common and 405 frequent categories.
    assert [groups.count(group) for group in "rcf"] == [337, 461, 405]


def test_it_takes_the_place_of_lvis_at_a_share_of_its_size(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    path, folder = builtin_datasets()["lvis_v1_train"]
    write_lvis(tmp_path, 0.002)
    tested_on, _ = builtin_datasets()["lvis_v1_val"]
    assert len(read_annotations(tested_on).image_ids) == 39
    truth = read_annotations(path)
    assert (len(truth.image_ids), len(truth.categories)) == (200, CLASSES)
    assert len(truth.object_images) == int(0.002 * 1_270_141)
    assert truth.enclosing().all() and (truth.boxes[:, 2:] > 0).all() and (truth.areas > 0).all()
    assert (np.bincount(truth.object_classes, minlength=CLASSES) > 0).all()
    content = json.loads(Path(path).read_text())
    shown = {image["id"]: Counter() for image in content["images"]}
    for annotation in content["annotations"]:
        shown[annotation["image_id"]][annotation["category_id"]] += 1
        corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation["segmentation"]])
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose([*corners.min(0), *corners.max(0)], [x, y, x + w, y + h], atol=1e-6)
        assert np.array_equal(corners, corners.round(2))
        assert annotation["area"] == pytest.approx(0.7 * w * h, abs=0.02)
    assert (truth.boxes[:, :2] >= 0).all()
    sizes = truth.image_sizes[truth.object_images, ::-1]
    assert (truth.boxes[:, 2:] <= sizes).all() and (truth.boxes[:, 2:] > sizes / 3).any(0).all()
    for image in content["images"]:
        present = set(shown[image["id"]])
        assert not present & set(image["neg_category_ids"]) and present >= set(
            image["not_exhaustive_category_ids"]
        )
    assert sum(bool(image["not_exhaustive_category_ids"]) for image in content["images"]) > 10
    for category in content["categories"]:
        objects = [of_image[category["id"]] for of_image in shown.values() if category["id"] in of_image]
        assert (category["image_count"], category["instance_count"]) == (len(objects), sum(objects))
        assert category["frequency"] == frequency(len(objects))
    for name, (height, width) in zip(truth.file_names(), truth.image_sizes.tolist(), strict=True):
        assert Image.open(f"{folder}/{name}").size == (width, height)
