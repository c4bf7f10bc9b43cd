import json

import pytest
import yaml

from exchange.catalog import builtin_datasets, dataset_paths, read_training_set
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError


@pytest.fixture
def settings(tmp_path):
    """Data sets of one's own: beside the others, anywhere, in the place of a built-in one, and without a file."""
    path = tmp_path / "x.yaml"
    custom = [["mine", "a.json", "images"], ["far", str(tmp_path / "far.json"), "/far"]]
    custom += [["lvis_v1_val", "a.json", "images"], ["gone", "gone.json", "images"]]
    path.write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": custom}}))
    for name in ("a.json", "far.json"):
        (tmp_path / name).touch()
    return load_config(str(path))


def test_a_data_set_lies_below_the_root_unless_its_path_is_absolute(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    beside = (str(tmp_path / "a.json"), str(tmp_path / "images"))
    assert dataset_paths("mine", settings) == dataset_paths("lvis_v1_val", settings) == beside
    assert dataset_paths("far", settings) == (str(tmp_path / "far.json"), "/far")
    with pytest.raises(UserError, match=r"annotations of data set 'gone' are not at .*gone\.json"):
        dataset_paths("gone", settings)
    with pytest.raises(UserError, match="no data set 'mien' .known: .*mine"):
        dataset_paths("mien", settings)


def test_lvis_s_file_names_start_at_the_folder_of_coco(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    root = REPOSITORY / "datasets"
    for part in ("train", "val"):
        known = builtin_datasets()
        assert known[f"lvis_v1_{part}"] == (str(root / f"lvis/lvis_v1_{part}.json"), str(root / "coco"))
        assert known[f"coco_2017_{part}"][1] == str(root / f"coco/{part}2017")


def test_an_entry_that_lacks_its_folder_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": [["mine", "a.json"]]}}))
    with pytest.raises(UserError, match=r"DATASETS\.CUSTOM takes entries"):
        dataset_paths("mine", load_config(str(tmp_path / "x.yaml")))


@pytest.fixture
def halves(tmp_path):
    """Writes two sets with the ids of each other and with their ``categories``; gives a configuration of both."""

    def write(*categories):
        for name, known in zip("ab", categories, strict=True):
            images = [{"id": 7, "height": 4, "width": 4}, {"id": 2, "height": 5, "width": 4}]
            images[0]["file_name"], images[1]["coco_url"] = f"{name}.png", f"http://x/train2017/{name}.jpg"
            objects = [{"id": 1, "image_id": image, "category_id": known[0][0]} for image in (2, 7)][
                : ord(name) - 96
            ]
            records = [{"id": number, "name": text} for number, text in known]
            content = {"images": images, "annotations": objects, "categories": records}
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        custom = [[name, str(tmp_path / f"{name}.json"), f"/images/{name}/"] for name in "ab"]
        (tmp_path / "x.yaml").write_text(
            yaml.safe_dump({"DATASETS": {"TRAIN": ["a", "b"], "CUSTOM": custom}})
        )
        return load_config(str(tmp_path / "x.yaml"))

    return write


def test_several_training_sets_become_one_with_numbers_of_its_own_and_whole_paths(halves):
    whole, root = read_training_set(halves([(5, "cat"), (9, "dog")], [(9, "dog"), (5, "cat")]))
    assert root == "" and whole.category_names == {5: "cat", 9: "dog"}
    paths = ["/images/a/a.png", "/images/a/train2017/a.jpg", "/images/b/b.png", "/images/b/train2017/b.jpg"]
    assert whole.file_names() == paths
    assert whole.image_sizes[:, 0].tolist() == [4, 5, 4, 5]
    assert len({whole.object_id(index) for index in range(3)}) == 3 and len(set(whole.image_ids)) == 4
    objects = zip(whole.object_images, whole.category_ids[whole.object_classes], strict=True)
    assert [(paths[i], c) for i, c in objects] == [(paths[1], 5), (paths[3], 9), (paths[2], 9)]


def test_training_sets_of_different_categories_are_refused(halves):
    with pytest.raises(UserError, match=r"the categories of .*b\.json are not those of .*a\.json"):
        read_training_set(halves([(5, "cat")], [(5, "dog")]))
