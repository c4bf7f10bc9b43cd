"""Weight files, damaged and hostile: the documented error or weights, no code, memory as the file's size warrants."""

import errno
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from detectron2_ext import train_net
from detectron2_ext.modeling import load_weights
from detectron2_ext.modeling.weights import read_weight_file
from exchange import files
from exchange.errors import UserError
from tests.detectron2_ext.engine.small_run import write_config
from tests.faults.mutations import FUZZING, memory_bounded, mutated_bytes, mutated_json

HEAD = "roi_heads.box_predictor.0.cls_score"
WEIGHTS = {f"{HEAD}.weight": torch.ones(3, 2), f"{HEAD}.bias": torch.zeros(3)}
HALF = {"layers.0.x": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
CONTENT = {"model": WEIGHTS, "model_ema": HALF, "iteration": 4, "rest": [1.5, None, {"a": (True, "b")}]}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()} | {"n": np.int64(3)}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive_with(compression: int = zipfile.ZIP_STORED, **contents: bytes | None) -> bytes:
    """What torch.save writes for CONTENT, with other contents of some parts, or without those that have None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(CONTENT))) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            data = contents.get(name.removeprefix("archive/"), old.read(name))
            if data is not None:
                new.writestr(name, data)
    return buffer.getvalue()


def archive(pickled: bytes) -> bytes:
    """The same with another pickle."""
    return archive_with(**{"data.pkl": pickled})


def pickle_of_archive() -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(CONTENT))) as file:
        return file.read("archive/data.pkl")


def with_header(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + SAFE[8 + struct.unpack("<Q", SAFE[:8])[0] :]


def safe_header() -> Any:
    return json.loads(SAFE[8 : 8 + struct.unpack("<Q", SAFE[:8])[0]])


SAFE = save(WEIGHTS)
NAMES = [
    "collections OrderedDict",
    "torch FloatStorage",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "_codecs encode",
    "numpy dtype",
    "numpy ndarray",
    "numpy._core.multiarray _reconstruct",
    "numpy._core.multiarray scalar",
    "numpy._core.numeric _frombuffer",
    "builtins bytearray",
    "torch Tensor",
    "no_such_module x",
]
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 255, 2**16 - 1, 2**31 - 1])
PIECES = (
    st.sampled_from([bytes([code]) for code in b"()tR}]lda esubQN.\x85\x86\x87\x88\x89\x81\x93\x94\x8f"])
    | st.sampled_from([b"c" + name.replace(" ", "\n").encode() + b"\n" for name in NAMES])
    | st.builds(lambda n: b"J" + struct.pack("<i", n), NUMBERS)
    | st.builds(
        lambda op, n: op + struct.pack("<I", n), st.sampled_from([b"r", b"j", b"X", b"B", b"T"]), NUMBERS
    )
    | st.builds(
        lambda op, n: op + struct.pack("<Q", n), st.sampled_from([b"\x95", b"\x8e", b"\x96"]), NUMBERS
    )
    | st.builds(lambda op, n: op + bytes([n]), st.sampled_from([b"q", b"h", b"K"]), st.integers(0, 5))
    | st.builds(
        lambda text: b"\x8c" + bytes([len(text)]) + text, st.sampled_from([b"f4", b"<", b"storage", b"0"])
    )
)
INSTRUCTIONS = st.builds(lambda pieces: b"\x80\x02" + b"".join(pieces) + b".", st.lists(PIECES, max_size=30))
FILES = {
    "archive": ("x.pth", mutated_bytes(saved(CONTENT))),
    "pickle of an archive": ("x.pth", mutated_bytes(pickle_of_archive()).map(archive)),
    "instructions in an archive": ("x.pth", INSTRUCTIONS.map(archive)),
    "legacy": ("x.pth", mutated_bytes(saved(CONTENT, _use_new_zipfile_serialization=False))),
    "arrays of protocol 2": ("x.pkl", mutated_bytes(pickle.dumps({"model": ARRAYS}, 2))),
    "arrays of protocol 5": ("x.pkl", mutated_bytes(pickle.dumps({"model": ARRAYS}, 5))),
    "instructions": ("x.pkl", INSTRUCTIONS),
    "safetensors": ("x.safetensors", mutated_bytes(SAFE)),
    "header of safetensors": ("x.safetensors", mutated_json(safe_header()).map(with_header)),
}


def read_or_refuse(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with memory_bounded(len(data)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's about names that are there twice
        try:
            assert isinstance(read_weight_file(str(path)), dict)
        except UserError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("form", FILES)
@FUZZING
@given(data=st.data())
def test_damaged_weights_are_read_or_refused(form, data, tmp_path):
    name, content = FILES[form]
    read_or_refuse(tmp_path / name, data.draw(content))


@FUZZING
@given(content=mutated_json(CONTENT))
def test_weights_of_any_structure_are_loaded_or_refused(content, tmp_path):
    network = nn.ModuleDict({"roi_heads": nn.ModuleDict({"box_predictor": nn.ModuleList([nn.Module()])})})
    network["roi_heads"]["box_predictor"][0].cls_score = nn.Linear(2, 3)
    torch.save(content, tmp_path / "x.pth")
    for use_ema in (False, True):
        try:
            load_weights(network, str(tmp_path / "x.pth"), use_ema=use_ema)
        except UserError as error:
            assert "x.pth" in str(error)


def instructions(*pieces: bytes) -> bytes:
    return b"\x80\x02" + b"".join(pieces) + b"."


LEGACY_START = b"".join(
    pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)
TWO = struct.pack("<qff", 2, 1.5, 0.25)  # the numbers of a storage of two, after how many they are
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu\x8a\6\0\0\0\0\x20\0tQ"


def a_storage(kind: bytes = b"Float", count: int = 2, view: bytes = b"") -> bytes:
    """The instructions that refer to storage 0."""
    number = b"J" + struct.pack("<i", count) + view
    return STORAGE.replace(b"Float", kind).replace(b"\x8a\6\0\0\0\0\x20\0", number)


LARGE = b"\x8a\x09" + (1 << 63).to_bytes(9, "little")  # the number 2**63


def a_tensor(extent: bytes, offset: bytes = b"K\0") -> bytes:
    """The instructions that make a tensor of storage 0."""
    return called("torch._utils _rebuild_tensor_v2", a_storage(), offset, extent, b"\x85K\1\x85")


def called(name: str, *arguments: bytes) -> bytes:
    """The instructions that call a function with what ``arguments`` make."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


FLOAT32 = called("numpy dtype", b"X\2\0\0\0f4")
SCALAR, FROM_BUFFER = "numpy._core.multiarray scalar", "numpy._core.numeric _frombuffer"


def an_array(content: bytes, shape: bytes, order: bytes = b"X\1\0\0\0C") -> bytes:
    """The instructions that make an array of float32."""
    return called(FROM_BUFFER, content, FLOAT32, shape, order)


def overlapping(number: int = 100) -> bytes:
    """An archive whose storages lie within each other: each begins with the head of the next."""
    data, infos, pickled = bytes(1 << 22), [], []
    for key in reversed(range(number)):
        info = zipfile.ZipInfo(f"a/data/{key:03}")  # a head of 40 bytes, so that all are whole numbers
        info.CRC, info.file_size, info.header_offset = zlib.crc32(data), len(data), 40 * key
        info.compress_size = info.file_size
        infos.append(info)
        pickled.append(a_storage(count=len(data) // 4).replace(b"X\1\0\0\x000", b"X\3\0\0\0%03d" % key))
        data = info.FileHeader() + data
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("a/data.pkl", instructions(b"(", *pickled, b"l"))
        file.filelist += infos
    return buffer.getvalue()


HOSTILE = {
    "an archive of a hundred storages within each other": overlapping,
    "an archive that unfolds to 128 MiB": lambda: archive_with(
        zipfile.ZIP_DEFLATED, **{"data/0": bytes(1 << 27)}
    ),
    "a call of bytearray": lambda: archive(instructions(b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R")),
    "a storage of 2**37 numbers": lambda: LEGACY_START + instructions(STORAGE) + instructions(b"]"),
    "a tensor of 2**50 numbers over one": lambda: saved({"model": torch.zeros(1).expand(1 << 50)}),
    "a table of 2**31 values": lambda: instructions(b"Nr\xff\xff\xff\x7f"),
    "bytes of 2**62": lambda: instructions(b"\x8e" + struct.pack("<Q", 1 << 62)),
    "an array of 2**33 bytes": lambda: instructions(b"\x96" + struct.pack("<Q", 1 << 33)),
    "a frame of 2**62 bytes": lambda: instructions(b"\x95" + struct.pack("<Q", 1 << 62)),
    "millions of dictionaries": lambda: instructions(b"(" + b"}" * (1 << 23) + b"l"),
    "one array of 2 MiB, a thousand times": lambda: instructions(
        b"B" + struct.pack("<I", 1 << 21) + bytes(1 << 21) + b"q\0(",
        an_array(b"h\0", b"J" + struct.pack("<i", 1 << 19) + b"\x85") * 1000 + b"l",
    ),
    "one text as bytes, a thousand times": lambda: instructions(
        b"X" + struct.pack("<I", 1 << 21) + b"x" * (1 << 21) + b"q\0(",
        b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 1000 + b"l",
    ),
}


def test_an_error_of_the_disk_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    torch.save({"model": {}}, tmp_path / "x.pth")
    monkeypatch.setattr(zipfile, "ZipFile", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        read_weight_file(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("claim", HOSTILE)
def test_what_claims_to_be_large_is_refused_before_it_takes_memory(claim, tmp_path):
    data = HOSTILE[claim]()
    (tmp_path / "x.pth").write_bytes(data)
    with memory_bounded(len(data)), pytest.raises(UserError, match=r"x\.pth"):
        read_weight_file(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("count", [0, 5, 7, 12])
def test_a_storage_of_more_or_fewer_numbers_than_were_saved_is_refused(count, tmp_path):
    (tmp_path / "x.pth").write_bytes(archive_with(**{"data/0": bytes(4 * count)}))
    with pytest.raises(UserError, match=r"x\.pth .*storage 0 has not the 6 torch\.float32 numbers"):
        read_weight_file(str(tmp_path / "x.pth"))


def legacy(*storages: bytes, start: bytes = LEGACY_START, keys: Any = ("0",), data: bytes = TWO) -> bytes:
    """What torch.save wrote before 1.6, for a dictionary of tensors."""
    named = b"".join(b"K" + bytes([n]) + storage for n, storage in enumerate(storages or [a_storage()]))
    return start + instructions(b"}(", named, b"u") + pickle.dumps(list(keys), 2) + data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (instructions(b"}K\0", an_array(b"C\x08" + TWO[8:], b"K\2\x85"), b"s"), None),
        (instructions(b"(K\0", an_array(b"C\x08" + TWO[8:], b"K\2\x85"), b"d"), None),
        (legacy(), None),
        (legacy(a_tensor(b"K\2")), None),
        (legacy(a_tensor(LARGE)), "verflow"),
        (legacy(a_tensor(b"K\2", offset=LARGE)), "verflow"),
        (legacy(a_tensor(b"U\1a")), "must be tuple of ints"),
        (legacy(a_tensor(b"K\3")), "out of bounds for storage"),
        (legacy(a_storage(view=b"N")), None),
        (legacy(a_storage(view=b"K\1")), "something else than a storage"),  # of a part of it
        (legacy(start=LEGACY_START.replace(b"M\xe9\x03", b"M\xea\x03")), "unknown version of PyTorch"),
        (legacy(start=LEGACY_START.replace(b"\x88", b"\x89")), "not in little-endian order"),
        (legacy(a_storage(count=-1)), "something else than a storage"),
        (
            instructions(an_array(b"C\x08" + TWO[8:], b"K\1\x85")),
            "an array of 8 bytes that has another shape",
        ),
        (
            instructions(an_array(b"C\x08" + TWO[8:], b"K\3\x85")),
            "an array of 8 bytes that has another shape",
        ),
        (
            instructions(an_array(b"C\0", b"K\0\x8a\x08" + struct.pack("<q", 1 << 62) + b"\x86")),
            "array is too big",
        ),
        (legacy(keys=()), "storages are not those that it needs"),
        (legacy(keys=("0", "1")), "storages are not those that it needs"),
        (legacy(keys=(0,)), "storages are not those that it needs"),
        (legacy(data=struct.pack("<qf", 2, 1.5)), "storage 0 is not whole"),
        (legacy(data=struct.pack("<qff", 1, 1.5, 0.25)), "storage 0 is not whole"),
        (legacy(a_storage(), a_storage(b"Int")), "storage 0 changes its type or length"),
        (legacy(a_storage(), a_storage(count=1)), "storage 0 changes its type or length"),
        (legacy(a_storage(b"Double", 100)), "storages are larger than itself"),
        (
            archive(instructions(b"(", a_storage(count=6), a_storage(b"Int", 6), b"l")),
            "storage 0 has not the 6",
        ),
        (
            archive_with(**{"data.pkl": instructions(b"(", a_storage(count=6), b"l"), "data/0": bytes(22)}),
            "22 bytes are no whole number",
        ),
        (archive_with(**{"data.pkl": None}), "an archive without a data.pkl"),
        (archive_with(**{"data/0": None}), "it has no data/0 as torch.save writes it"),
        (archive_with(byteorder=b"big"), "not in little-endian order"),
        (archive_with(zipfile.ZIP_DEFLATED), "it has no byteorder as torch.save writes it"),
        (archive(instructions(b"c" + b"m" * 999 + b"\nx\n")), f"it wants to load {'m' * 183}$"),
        (instructions(b"(", b"N" * 600_000, b"l"), "more than 500000 instructions"),
    ],
    ids=lambda part: f"{len(part)} bytes" if isinstance(part, bytes) else part and part[:30],
)
def test_what_belongs_together_in_a_file_is_compared(data, reason, tmp_path):
    (tmp_path / "x.pth").write_bytes(data)
    if reason is None:
        assert read_weight_file(str(tmp_path / "x.pth"))[0].tolist() == [1.5, 0.25]
        return
    with pytest.raises(UserError, match=rf"x\.pth cannot be read .*{reason}"):
        read_weight_file(str(tmp_path / "x.pth"))


EMPTY_BYTES, FOUR_BYTES = b"C\0", b"C\4\0\0\0\0"


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (called("_codecs encode", b"X\3\0\0\0\xe2\x82\xac", b"X\6\0\0\0latin1"), "its bytes are none"),
        (called("_codecs encode", b"X\1\0\0\0a", b"X\5\0\0\0utf-8"), "something else than bytes"),
        (called("__builtin__ bytes", b"K\7"), "it makes bytes of something else"),
        (called("collections OrderedDict", b"]]K\1aa"), "dictionary of something else than pairs"),
        (called(SCALAR, b"K\1", FOUR_BYTES), "a number of unknown type"),
        (called(SCALAR, FLOAT32, b"K\4"), "it fills an array with a int"),
        (an_array(FOUR_BYTES, b"K\1\x85", b"X\1\0\0\0Z"), "an array of unknown form"),
        (an_array(EMPTY_BYTES, b"J\xff\xff\xff\xff\x85"), "an array that has no shape"),
        (called("torch._utils _rebuild_parameter", b"K\1"), "of something else than a tensor"),
        (called("torch._utils _rebuild_tensor_v2", b"K\1"), "a tensor that is larger than its storage"),
    ],
)
def test_what_is_made_of_something_that_it_cannot_be_made_of_is_refused(pickled, reason, tmp_path):
    (tmp_path / "x.pkl").write_bytes(instructions(pickled))
    with pytest.raises(UserError, match=rf"x\.pkl cannot be read as weights.*: .*{reason}"):
        read_weight_file(str(tmp_path / "x.pkl"))


def test_a_pickle_without_an_end_is_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(instructions(b"}")[:-1])
    with pytest.raises(UserError, match=r"x\.pkl cannot be read as weights.*exhausted before seeing STOP"):
        read_weight_file(str(tmp_path / "x.pkl"))


def test_pairs_and_texts_of_old_pickles_become_dictionaries_and_arrays(tmp_path):
    ten = called(SCALAR, FLOAT32, b"X\4\0\0\0\0\0\x20A")
    (tmp_path / "x.pkl").write_bytes(
        instructions(called("collections OrderedDict", b"](](X\1\0\0\0a" + ten + b"ee"))
    )
    assert read_weight_file(str(tmp_path / "x.pkl")) == {"a": torch.tensor(10.0)}


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.path),)


@pytest.mark.parametrize("place", ["MODEL.WEIGHTS", "the checkpoint to resume from"])
@pytest.mark.parametrize("form", ["archive", "legacy", "plain pickle"])
def test_a_checkpoint_with_code_in_it_stops_the_training_and_the_code_never_runs(place, form, tmp_path):
    content = {"optimizer": Touches(tmp_path / "ran"), "model": WEIGHTS, "iteration": 3}
    data = (
        pickle.dumps(content)
        if form == "plain pickle"
        else saved(content, _use_new_zipfile_serialization=form == "archive")
    )
    files.write_bytes(str(tmp_path / "run/train/evil.pth"), data)
    options = ["--config", str(write_config(tmp_path))]
    if place == "MODEL.WEIGHTS":
        options += [place, str(tmp_path / "run/train/evil.pth")]
    else:
        files.write_bytes(str(tmp_path / "run/train/last_checkpoint"), b"evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth cannot be read as weights.* wants to load posix\.mknod"):
        train_net.main(options)
    assert not (tmp_path / "ran").exists()
