import collections
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from detectron2_ext.modeling.described import read_described
from detectron2_ext.modeling.weights import read_weight_file
from exchange import files
from exchange.errors import UserError


class Opens:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_file_that_runs_code_is_refused_and_runs_nothing(suffix, tmp_path):
    victim = tmp_path / "victim"
    path = tmp_path / f"x{suffix}"
    content = {"model": {"weight": Opens(victim)}}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"x{suffix} cannot be read as weights"):
        read_weight_file(str(path))
    assert not victim.exists()


@pytest.mark.parametrize("value", [np.array([print], dtype=object), collections.Counter(), {1, 2}.__class__])
def test_a_pickle_with_more_than_arrays_is_refused(value, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": value}))
    with pytest.raises(UserError, match="it wants to load|something else than numbers"):
        read_weight_file(str(tmp_path / "x.pkl"))


def test_arrays_of_every_kind_are_read(tmp_path):
    arrays = {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "whole": np.int64(7),
        "empty": np.zeros((0, 3)),
    }
    content = {"model": collections.OrderedDict(arrays), "__author__": "x", "matching_heuristics": True}
    for protocol in range(2, 6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        read = read_weight_file(str(tmp_path / "x.pkl"))
        assert read["__author__"] == "x"
        for name, array in arrays.items():
            assert np.array_equal(read["model"][name].numpy(), array)


@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_file_cut_short_is_named(name, keep, tmp_path):
    path = tmp_path / name
    if name == "x.pkl":
        path.write_bytes(pickle.dumps({"model": {"w": np.zeros(1000)}}))
    elif name == "x.pth":
        torch.save({"model": {"w": torch.zeros(1000)}}, path)
    else:
        save_file({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{name} cannot be read as weights, it may be cut short"):
        read_weight_file(str(path))


def test_a_file_that_is_not_there_or_holds_something_else_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no weight file .*x.pth"):
        read_weight_file(str(tmp_path / "x.pth"))
    torch.save([torch.zeros(1)], tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth holds a list"):
        read_weight_file(str(tmp_path / "x.pth"))


def test_another_file_than_the_feedbacks_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "x.pth")
    path = str(tmp_path / "x.pth")
    assert set(read_weight_file(path, files.sha256(path))) == {"w"}
    with pytest.raises(UserError, match="not the file that the feedback was computed with"):
        read_weight_file(path, "0" * 64)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"settings": "SEED: 1", "categories": "[" * 100_000}, "cannot be read as weights"),
        ({"settings": "SEED: 1", "categories": "no"}, "cannot be read as weights"),
        ({"settings": "SEED: 1", "categories": "3"}, "does not say its settings"),
        (
            {"settings": "SEED: 1", "categories": '[{"id": "x", "name": "kite"}]'},
            "is damaged: of a category 'id'",
        ),
        ({"settings": "SEED: 1", "categories": "[]"}, "names of 0 categories, but .*NUM_CLASSES is 1203"),
        ({"settings": "- 1", "categories": "[]"}, "holds no settings"),
        ({"settings": "SEED: [", "categories": "[]"}, "x.safetensors is not valid YAML"),
        ({"settings": "SEEED: 1", "categories": "[]"}, "x.safetensors .*sets SEEED, which is no setting"),
    ],
)
def test_what_a_file_says_of_itself_is_read_as_if_anybody_had_written_it(metadata, sentence, tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(UserError, match=sentence):
        read_described(str(tmp_path / "x.safetensors"))
