import collections
import pickle

import numpy as np
import pytest
import torch
from network_scenes import small_config
from safetensors import safe_open
from safetensors.torch import save_file

from detectron2_ext.modeling.described import (
    Category,
    read_described,
    without_extra_categories,
    write_described,
)
from detectron2_ext.modeling.weights import read_weight_file
from exchange.errors import UserError

KINDS = [("float", 64), ("float", 32), ("float", 16), ("bfloat", 16), ("uint", 8)]
KINDS += [("int", bits) for bits in (64, 32, 16, 8)]


class NoPairs:
    """A dictionary of a single thing and of three."""

    def __reduce__(self):
        return collections.OrderedDict, ([("a",), ("b", 1, "c")],)


KITE = '[{"id": 1, "name": "kite"}]'


@pytest.mark.parametrize(
    "value",
    [
        np.array([print], dtype=object),
        collections.Counter(),
        {1, 2}.__class__,
        np.arange(3, dtype=">f4"),
        NoPairs(),
    ],
)
def test_a_pickle_with_more_than_arrays_of_this_machines_numbers_is_refused(value, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": value}))
    with pytest.raises(
        UserError, match="it wants to load|something else than (numbers|pairs)|another byte order"
    ):
        read_weight_file(str(tmp_path / "x.pkl"))


@pytest.mark.parametrize("operands", [b"\x8c\x05torch]", b"]\x8c\x0cFloatStorage", b"]]"])
def test_a_pickle_that_wants_to_load_what_is_no_name_is_refused(operands, tmp_path):
    stack_global = b"\x93"  # of module and name; here one is an empty list, or both
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + operands + stack_global + b".")
    with pytest.raises(UserError, match="it wants to load something without a name"):
        read_weight_file(str(tmp_path / "x.pkl"))


def test_arrays_of_every_kind_are_read(tmp_path):
    arrays = {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "whole": np.int64(7),
        "empty": np.zeros((0, 3)),
        **{kind: np.array([1, 0, 1]).astype(kind) for kind in ("f2", "i1", "i2", "i4", "u1", "b1")},
        "of 20 MB": np.arange(5_000_000, dtype=np.float32),
    }
    arrays["again"] = arrays["float"]
    content = {"model": collections.OrderedDict(arrays), "__author__": "x", "matching_heuristics": True}
    content["losses"] = [0.5] * 200_000  # as long as the largest checkpoints
    # NumPy 1 and NumPy 2 call it so
    for protocol, module in ((2, b"numpy.core"), *((protocol, b"numpy._core") for protocol in range(2, 6))):
        pickled = pickle.dumps(content, protocol=protocol).replace(b"numpy._core", module)
        (tmp_path / "x.pkl").write_bytes(pickled)
        read = read_weight_file(str(tmp_path / "x.pkl"))
        assert read["__author__"] == "x"
        for name, array in arrays.items():
            assert np.array_equal(read["model"][name].numpy(), array)
            assert read["model"][name].numpy().dtype == array.dtype


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_are_read(zipped, tmp_path):
    kinds = [getattr(torch, f"{name}{bits}") for name, bits in KINDS]
    tensors = {str(kind): torch.tensor([[-7, 0, 100], [1, 2, 3]]).to(kind) for kind in (*kinds, torch.bool)}
    tensors["a parameter"] = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    tensors["upright"] = torch.arange(6).reshape(2, 3).T
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = read_weight_file(str(tmp_path / "x.pth"))
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_a_file_that_is_not_there_or_holds_something_else_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no weight file .*x.pth"):
        read_weight_file(str(tmp_path / "x.pth"))
    torch.save([torch.zeros(1)], tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth holds a list"):
        read_weight_file(str(tmp_path / "x.pth"))
    torch.save({"settings": "SEED: 1", "categories": [{"id": 1, "name": "kite"}]}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth does not say its settings .*take a checkpoint of a run"):
        read_described(str(tmp_path / "x.pth"))  # which has no weights


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
        ({"settings": "SEED: 1", "categories": '[{"id": 1}]'}, "'name' is missing"),
        ({"settings": "SEED: 1", "categories": "[]"}, "does not say its settings"),
        (
            {"settings": "SEED: 1", "categories": KITE},
            "names of 1 categories, but .*NUM_CLASSES is 0",
        ),
        ({"settings": "- 1", "categories": KITE}, "holds no settings"),
        ({"settings": "SEED: [", "categories": KITE}, "x.safetensors is not valid YAML"),
        ({"settings": "SEEED: 1", "categories": KITE}, "x.safetensors .*sets SEEED, which is no setting"),
    ],
)
def test_what_a_file_says_of_itself_is_read_as_if_anybody_had_written_it(metadata, sentence, tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(UserError, match=sentence):
        read_described(str(tmp_path / "x.safetensors"))


def test_what_is_written_without_extra_categories_says_nothing_of_them(tmp_path):
    cfg = small_config(ROI_HEADS__NUM_CLASSES=4, ROI_HEADS__NUM_EXTRA_CLASSES=1).clone()
    cfg.defrost()
    cfg.DATASETS.EXTRA_CATEGORIES = "more.json"
    categories = [Category(number, f"kite {number}") for number in (1, 2, 5, 9)]
    turned = {"x.cls_score.weight": torch.arange(10.0).view(2, 5).T}
    weights, cut, left = without_extra_categories(turned, cfg, categories)
    heads = cut.MODEL.ROI_HEADS
    assert (heads.NUM_CLASSES, heads.NUM_EXTRA_CLASSES, cut.DATASETS.EXTRA_CATEGORIES) == (3, 0, "")
    assert cut.is_frozen() and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    path = str(tmp_path / "x.safetensors")
    write_described(path, weights | {"turned": turned["x.cls_score.weight"]}, cut, left)
    read = read_described(path)
    assert read.categories == categories[:3] and read.cfg.MODEL == cut.MODEL
    assert read.content["model"]["x.cls_score.weight"].tolist() == [[0, 5], [1, 6], [2, 7], [4, 9]]
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"  # which other tools ask for
