"""Which ONNX file a name means."""

import os

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from diSegmenter import onnx_file
from diSegmenter.onnx_file import find_onnx
from diSegmenter.onnx_network import load_onnx_network
from exchange.config import REPOSITORY
from exchange.errors import UserError
from tests.diSegmenter.small_onnx import save_weights, save_with_data_at


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return str(folder)


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["model.onnx", "model_fp16.onnx", "onnx/model.onnx"], "model.onnx"),
        (["onnx/model.onnx", "other.onnx", "onnx/model_fp16.onnx"], "onnx/model.onnx"),
        (["isnet.onnx", "config.json"], "isnet.onnx"),
    ],
)
def test_of_a_folder_its_model_or_its_only_onnx_file_is_meant(names, meant, tmp_path):
    assert find_onnx(touch(tmp_path, *names), "main") == str(tmp_path / meant)
    assert find_onnx(str(tmp_path / names[0]), "main") == str(tmp_path / names[0])


@pytest.mark.parametrize("names", [[], ["a.onnx", "b.onnx"]])
def test_a_folder_with_no_or_with_several_files_is_refused(names, tmp_path):
    (tmp_path / "model").mkdir()
    folder = touch(tmp_path / "model", *names)
    with pytest.raises(
        UserError, match=rf"holds {len(names)} ONNX files \({', '.join(names)}\).*name the file"
    ):
        find_onnx(folder, "main")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache, as a download leaves it, without a network: files are links to what their contents are called."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--them--matting"
    touch(repository, "blobs/1", "blobs/2", "refs/main", "snapshots/abc/onnx/.keep")
    (repository / "refs/main").write_text("abc")
    save_with_data_at(repository / "blobs/1", "model.onnx_data")
    save_weights(repository / "blobs/2")
    for name, blob in (("model.onnx", 1), ("model.onnx_data", 2), ("half.onnx", 1)):
        os.symlink(f"../../../blobs/{blob}", repository / "snapshots/abc/onnx" / name)
    return repository / "snapshots/abc"


def test_of_a_hub_repository_its_model_or_the_file_that_is_named_is_meant(hub):
    assert find_onnx("them/matting", "main") == str(hub / "onnx/model.onnx")
    assert find_onnx("them/matting/onnx/half.onnx", "main") == str(hub / "onnx/half.onnx")
    for name in ("onnx/whole.onnx", "onnx"):  # the latter is a folder there
        with pytest.raises(UserError, match=f"repository them/matting has no {name} at main"):
            find_onnx(f"them/matting/{name}", "main")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("them/matting", ["onnx/model.onnx", "onnx/model.onnx_data"]),
        ("them/matting/onnx/model_fp16.onnx", ["onnx/model_fp16.onnx", "onnx/model_fp16.onnx_data"]),
    ],
)
def test_of_a_hub_repository_only_the_network_and_its_data_are_fetched(name, wanted, tmp_path, monkeypatch):
    there = [f"onnx/model{form}.onnx{data}" for form in ("", "_fp16", "_int8") for data in ("", "_data")]

    def download(repository, revision, allow_patterns):
        assert (repository, revision) == ("them/matting", "abc")
        fetched.extend(filter_repo_objects([*there, "matting.py"], allow_patterns=allow_patterns))
        return touch(tmp_path, *fetched)

    fetched: list[str] = []
    monkeypatch.setattr(onnx_file, "snapshot_download", download)
    assert find_onnx(name, "abc") == str(tmp_path / wanted[0])
    assert fetched == wanted


def test_a_relative_name_is_looked_for_below_the_repository_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "assets/digits/clip/model.safetensors"
    assert find_onnx(name, "main") == str(REPOSITORY / name)
    touch(tmp_path, "own/isnet.onnx")
    assert find_onnx("own/isnet.onnx", "main") == "own/isnet.onnx"


def test_a_network_with_data_beside_it_loads_from_a_hub_s_cache(hub):
    assert load_onnx_network("them/matting", "main", 0, 9, torch.device("cpu"))[1] == (4, 4)


@pytest.mark.parametrize(
    "name",
    ["them/nothing", "nothing.onnx", "folder/nothing.onnx", "/not/there.onnx", "../a/b/c.onnx", "a b/c", ""],
)
def test_a_name_that_is_nowhere_is_one_sentence(name, hub, monkeypatch):
    if not name:
        monkeypatch.setattr("diSegmenter.onnx_file.model_source", lambda name: name)
    with pytest.raises(UserError, match="correct SEGMENTER.FOREGROUND_MODEL to an .onnx file") as caught:
        find_onnx(name, "main")
    assert "\n" not in str(caught.value)
