import pytest
import yaml

from exchange.catalog import builtin_datasets, dataset_paths
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
