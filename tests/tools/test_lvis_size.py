import numpy as np
from PIL import Image

from exchange.annotations import frequency, read_annotations
from exchange.catalog import builtin_datasets
from tools.benchmarks.lvis_size import CLASSES, image_counts, write_split


def test_classes_are_as_frequent_as_in_lvis():
    groups = [frequency(count) for count in image_counts().tolist()]
    # LVIS v1 (Gupta et al. 2019, as released): 337 rare, 461 common and 405 frequent categories.
    assert [groups.count(group) for group in "rcf"] == [337, 461, 405]


def test_it_takes_the_place_of_lvis_at_a_share_of_its_size(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    path, folder = builtin_datasets()["lvis_v1_train"]
    assert str(write_split(tmp_path, "train", 0.002)) == path
    truth = read_annotations(path)
    assert (len(truth.image_ids), len(truth.categories)) == (200, CLASSES)
    assert len(truth.object_images) == int(0.002 * 1_270_141)
    assert truth.enclosing().all() and (truth.boxes[:, 2:] > 0).all() and (truth.areas > 0).all()
    assert (np.bincount(truth.object_classes, minlength=CLASSES) > 0).all()
    for name, (height, width) in zip(truth.file_names(), truth.image_sizes.tolist(), strict=True):
        assert Image.open(f"{folder}/{name}").size == (width, height)
