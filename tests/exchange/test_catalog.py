import json
import os

import pytest
import yaml

from exchange.catalog import builtin_datasets, dataset_paths, read_training_set, with_classes_of
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
    for name, hint in (
        ("gone", r"gone\.json: .* the entry in DATASETS"),
        ("coco_2017_val", ".* DETECTRON2_DATA"),
    ):
        with pytest.raises(UserError, match=f"annotations of data set '{name}' are not at .*{hint}"):
            dataset_paths(name, settings)
    with pytest.raises(UserError, match="no data set 'mien' .known: .*mine"):
        dataset_paths("mien", settings)


def test_lvis_s_file_names_start_at_the_folder_of_coco(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    expected = {}
    for part in ("train", "val"):
        expected[f"lvis_v1_{part}"] = (f"lvis/lvis_v1_{part}.json", "coco")
        expected[f"coco_2017_{part}"] = (f"coco/annotations/instances_{part}2017.json", f"coco/{part}2017")
        expected[f"lvis_digits_{part}"] = (f"lvis_digits/lvis_digits_{part}.json", "lvis_digits/images")
    root = REPOSITORY / "datasets"
    assert builtin_datasets() == {
        name: (str(root / file), str(root / folder)) for name, (file, folder) in expected.items()
    }


@pytest.mark.parametrize("entry", [["mine", "a.json"], [], ["mine", "a.json", 3], "text"])
def test_an_entry_that_lacks_its_folder_is_named(entry, tmp_path):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": [entry]}}))
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


def test_several_training_sets_become_one_with_numbers_of_its_own_and_whole_paths(halves, tmp_path):
    whole, root = read_training_set(halves([(5, "cat"), (9, "dog")], [(9, "dog"), (5, "cat")]))
    assert root == "" and whole.category_names == {5: "cat", 9: "dog"}
    paths = ["/images/a/a.png", "/images/a/train2017/a.jpg", "/images/b/b.png", "/images/b/train2017/b.jpg"]
    assert whole.file_names() == paths
    assert whole.image_sizes[:, 0].tolist() == [4, 5, 4, 5]
    assert len({whole.object_id(index) for index in range(3)}) == 3 and len(set(whole.image_ids)) == 4
    objects = zip(whole.object_images, whole.category_ids[whole.object_classes], strict=True)
    assert [(paths[i], c) for i, c in objects] == [(paths[1], 5), (paths[3], 9), (paths[2], 9)]
    whole, _ = read_training_set(load_config(str(tmp_path / "x.yaml"), ["DATASETS.TRAIN", "[b, a]"]))
    assert whole.file_names() == paths[2:] + paths[:2]  # in the order that they are named in


def test_training_sets_of_different_categories_and_none_at_all_are_refused(halves, tmp_path):
    with pytest.raises(UserError, match=r"the categories of .*b\.json are not those of .*a\.json"):
        read_training_set(halves([(5, "cat")], [(5, "dog")]))
    with pytest.raises(UserError, match="TRAIN names no data set"):
        read_training_set(load_config(str(tmp_path / "x.yaml"), ["DATASETS.TRAIN", "[]"]))


@pytest.fixture
def beyond(halves, tmp_path, monkeypatch):
    """The configuration of two sets with the categories 5, 9 and what a file says as DATASETS.EXTRA_CATEGORIES, which
    is named as seen from the repository."""
    monkeypatch.chdir(tmp_path)

    def write(content, *settings):
        halves([(5, "cat"), (9, "dog")], [(9, "dog"), (5, "cat")])
        path = tmp_path / "extra.json"
        path.write_text(json.dumps(content))
        named = ["DATASETS.EXTRA_CATEGORIES", os.path.relpath(path, REPOSITORY)]
        return load_config(str(tmp_path / "x.yaml"), [*named, *settings])

    return write


EXTRA = [{"id": 30, "name": "tench"}, {"id": 12, "name": "ant", "def": "it digs"}]


@pytest.mark.parametrize("content", [EXTRA, {"categories": EXTRA}, [{"id": 5, "name": "cat"}, *EXTRA]])
def test_extra_categories_are_the_last_classes_of_a_run_and_have_no_instances(beyond, content):
    cfg = beyond(content)
    whole, _ = read_training_set(cfg)
    assert whole.category_names == {5: "cat", 9: "dog", 12: "ant", 30: "tench"}
    assert whole.categories[2]["def"] == "it digs" and whole.num_extra == 2
    assert whole.path.endswith(f"b.json + {REPOSITORY}/{cfg.DATASETS.EXTRA_CATEGORIES}")
    assert whole.instance_counts().tolist() == [1, 2, 0, 0] == whole.image_counts().tolist()
    assert len(read_training_set(beyond(content, "DATASETS.TRAIN", "a"))[0].categories) == 4
    known = with_classes_of(cfg, whole)
    heads = known.MODEL.ROI_HEADS
    assert (heads.NUM_CLASSES, heads.NUM_EXTRA_CLASSES, known.is_frozen()) == (4, 2, True)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.ROI_HEADS.NUM_EXTRA_CLASSES == 0


@pytest.mark.parametrize("given", [2, 4])
def test_the_number_of_classes_may_count_the_extra_ones_or_not(beyond, given):
    cfg = beyond(EXTRA, "MODEL.ROI_HEADS.NUM_CLASSES", str(given))
    assert with_classes_of(cfg, read_training_set(cfg)[0]).MODEL.ROI_HEADS.NUM_CLASSES == 4
    wrong = beyond(EXTRA, "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    with pytest.raises(UserError, match=r"has 4 categories, but MODEL\.ROI_HEADS\.NUM_CLASSES is 3"):
        with_classes_of(wrong, read_training_set(wrong)[0])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"id": 7, "name": "ant"}], "category 7, 'ant', is not beyond those of .*give it an id above 9"),
        ([{"id": 9, "name": "ant"}], "category 9, 'ant', is not beyond"),
        ([{"id": 12, "name": "cat"}], "category 12, 'cat', is not beyond"),
        (
            [{"id": 9, "name": "dog"}],
            "lists no category that .* has not: leave DATASETS.EXTRA_CATEGORIES out",
        ),
        ([{"id": 12, "name": 3}], "extra.json.*name"),
        ([*EXTRA, EXTRA[0]], "extra.json lists an id twice"),
        ({"images": []}, r"\(DATASETS.EXTRA_CATEGORIES\) is no list of categories"),
        ([12], "extra.json"),
    ],
)
def test_extra_categories_that_are_not_beyond_the_data_set_s_are_refused_in_one_sentence(
    beyond, content, sentence
):
    with pytest.raises(UserError, match=sentence) as error:
        read_training_set(beyond(content))
    assert "\n" not in str(error.value)
