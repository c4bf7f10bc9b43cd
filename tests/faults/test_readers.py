"""Damaged input of every kind: a reader raises its documented error or reads something correctly typed.

How many inputs, and how many more by night: tests/faults/mutations.py.
"""

import dataclasses
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fvcore.common.config import CfgNode
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from diSegmenter.pool.foreign import read_xpaste
from exchange.config import load_config
from exchange.decisions import Decision, always_refused, read_decisions, write_decisions
from exchange.errors import UserError
from exchange.feedback import Feedback, read_feedback
from exchange.images import (
    MAX_PIXELS,
    BadImage,
    decode_rgba,
    encode_png,
    read_record,
    read_rgba,
    read_upright,
)
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, Manifest, read_manifest
from exchange.pool_features import PoolFeatures, add_features, begin
from exchange.pool_index import PoolIndex, PoolInstance, write_index
from exchange.run import open_run
from tests.diSegmenter.conftest import disc_image, png, pool_instance
from tests.faults.mutations import FUZZING, memory_bounded, mutated_bytes, mutated_json

INSTANCE = GeneratedInstance("00_0003_0000.png", 3, 0, 1, "a photo of {}", "a photo of red disc", False)
MANIFEST = Manifest(0, 0, 1, True, {3: 1}, [INSTANCE], 1.5)
FEEDBACK = Feedback(
    0, 9, "c.pth", "ab", "d", [3, 7], [1.0, None], [2.0, 3.0], [0.1, 0.2], 1.0, 2.0, None, 2.0, 3.0, "t"
)
READERS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "manifest": (read_manifest, {"format": 1, **dataclasses.asdict(MANIFEST)}),
    "feedback": (read_feedback, {"format": 1, **dataclasses.asdict(FEEDBACK)}),
    "X-Paste's list": (
        lambda path: list(read_xpaste(path, "/", [3, 7])),
        {"0": ["*a.png"], "1": ["b.png|c.png"]},
    ),
}
POOL = [pool_instance(0, 3, 0), pool_instance(0, 7, 1, reason="too small"), pool_instance(0, 7, 2)]
WHOLE = (
    st.none()
    | st.sampled_from([-(1 << 31), -1, 0, 1, 64, (1 << 31) - 1])
    | st.integers(-(1 << 31), (1 << 31) - 1)
)
LARGE = WHOLE | st.sampled_from([-(1 << 63), 1 << 40, (1 << 63) - 1])
TEXT = (
    st.none()
    | st.sampled_from(["", "..", "../../x", "/etc/passwd", "a/../../x", "a\\b", "x" * 300])
    | st.text(max_size=3)
)
COLUMNS = (
    dict.fromkeys(("round", "category_id", "width", "height", "area", "objects"), WHOLE)
    | dict.fromkeys(("seed", "offset", "length"), LARGE)
    | dict.fromkeys(("clip_white", "clip_black", "similarity", "judge"), st.none() | st.floats())
    | dict.fromkeys(
        ("file", "cutout", "reason", "model", "prompt", "foreground"),
        TEXT.map(lambda t: t and t.encode(errors="replace").decode()),
    )
    | {"bbox": st.none() | st.lists(WHOLE, min_size=4, max_size=4)}
    | {"segmentation": st.none() | st.lists(st.none() | st.lists(WHOLE, max_size=8), max_size=2)}
)
YAML = {
    "SOLVER": {"MAX_ITER": 5, "BASE_LR": 0.1, "CLIP_GRADIENTS": {"ENABLED": True}},
    "INPUT": {"SCALE_RANGE": [0.1, 2.0], "FORMAT": "RGB"},
    "DATASETS": {"TRAIN": ["a"], "CUSTOM": [["a", "b", "c"]]},
}
RUN = {"settings": {"SEED": 0, "SOLVER.BASE_LR": 0.1, "DATASETS.TRAIN": ["a"]}, "versions": {"python": "3"}}
BASE = "SOLVER: {MAX_ITER: 3}\nMODEL: {PIXEL_MEAN: [1.0, 2.0, 3.0]}\n"


def check_reading(read: Callable[[str], Any], path: Path, damaged: bytes) -> None:
    """Reads it: the documented error, which names the file, or a value; a record can then be written again."""
    path.write_bytes(damaged)
    try:
        with memory_bounded(len(damaged)):
            value = read(str(path))
    except UserError as error:
        assert path.name in str(error) or str(path.parent) in str(error)
    else:
        if dataclasses.is_dataclass(value):
            json.dumps(dataclasses.asdict(value), ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("reader", READERS)
@FUZZING
@given(data=st.data())
def test_json_with_values_exchanged(reader, data, tmp_path):
    read, content = READERS[reader]
    changed = data.draw(mutated_json(json.loads(json.dumps(content))))
    check_reading(read, tmp_path / "file.json", json.dumps(changed).replace("Infinity", "1e999").encode())


@pytest.mark.parametrize("reader", READERS)
@FUZZING
@given(data=st.data())
def test_json_with_bytes_changed(reader, data, tmp_path):
    read, content = READERS[reader]
    check_reading(read, tmp_path / "file.json", data.draw(mutated_bytes(json.dumps(content).encode())))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> CfgNode:
    """Settings of a run whose run.yaml gets damaged."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "x.yaml").touch()
    return load_config(str(folder / "x.yaml"), ["OUTPUT_DIR", str(folder)])


@pytest.mark.parametrize("damage", [mutated_json, mutated_bytes])
@FUZZING
@given(data=st.data())
def test_a_damaged_configuration(damage, data, tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    content = {"_BASE_": "base.yaml", **YAML}
    changed = data.draw(damage(content if damage is mutated_json else yaml.safe_dump(content).encode()))
    text = yaml.safe_dump(changed).encode() if damage is mutated_json else changed
    check_reading(load_config, tmp_path / "file.yaml", text)


@pytest.mark.parametrize("damage", [mutated_json, mutated_bytes])
@FUZZING
@given(data=st.data())
def test_a_damaged_run_yaml(damage, data, run):
    changed = data.draw(damage(RUN if damage is mutated_json else yaml.safe_dump(RUN).encode()))
    text = yaml.safe_dump(changed).encode() if damage is mutated_json else changed
    check_reading(lambda path: open_run(run).root, Path(run.OUTPUT_DIR, "run.yaml"), text)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> tuple[RunLayout, dict[str, bytes]]:
    """The pool whose files get damaged, and what they hold when whole."""
    layout = RunLayout(str(tmp_path_factory.mktemp("pool")))
    write_index(layout, 0, POOL)
    return layout, {path: Path(path).read_bytes() for path in (layout.pool_index(0), layout.pool_outlines(0))}


@pytest.mark.parametrize("file", [0, 1])
@FUZZING
@given(data=st.data())
def test_a_pool_index_with_bytes_changed(file, data, pool):
    layout, whole = pool
    path = Path(sorted(whole)[file])
    try:
        check_reading(
            lambda path: [dataclasses.asdict(row) for row in PoolIndex(layout, [0])],
            path,
            data.draw(mutated_bytes(whole[str(path)])),
        )
    finally:
        path.write_bytes(whole[str(path)])


@FUZZING
@given(data=st.data())
def test_a_table_of_decisions_with_bytes_changed(data, tmp_path):
    layout = RunLayout(str(tmp_path))
    write_decisions(layout, 0, 9, [Decision(n, 0, f"{n}.png", 3, 0.5, -0.05, n > 1) for n in range(3)])
    (path,) = map(Path, layout.decision_parts(0).values())
    check_reading(
        lambda path: (read_decisions(layout, [0]).to_pylist(), always_refused(layout, [0], 1)),
        path,
        data.draw(mutated_bytes(path.read_bytes())),
    )


@FUZZING
@given(data=st.data())
def test_features_with_bytes_changed(data, tmp_path):
    layout, names = RunLayout(str(tmp_path)), ["a.png", "b.png", "c.png"]
    begin(layout, {"model": "a"})
    if not layout.feature_parts(0):
        add_features(layout, 0, names, np.eye(3, 8))
        Path(f"{tmp_path}/whole").write_bytes(Path(layout.features(0, 0)).read_bytes())

    def read(path: str) -> list[float]:
        features = PoolFeatures(layout, [0])
        rows = features.rows(names)
        vectors = features.read(rows[rows >= 0]) if (rows >= 0).any() else np.eye(1)
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
        return vectors.tolist()

    check_reading(
        read, Path(layout.features(0, 0)), data.draw(mutated_bytes(Path(f"{tmp_path}/whole").read_bytes()))
    )


@FUZZING
@given(data=st.data())
def test_a_pool_index_with_values_exchanged(data):
    """Of Arrow's type: what is read then lies within its image, and what is not there is named."""
    layout = RunLayout("memory://readers")
    rows = [
        dataclasses.replace(row, **data.draw(st.fixed_dictionaries({}, optional=COLUMNS))) for row in POOL
    ]
    write_index(layout, 0, rows)
    try:
        with memory_bounded(1000):
            index = PoolIndex(layout, [0])
            found = list(index)
            for row in range(len(index)):
                index.read(row)
    except UserError as error:
        assert "memory://readers/pool" in str(error)
        return
    for row in found:
        x, y, width, height = row.bbox
        assert 0 <= x < x + width <= row.width and 0 <= y < y + height <= row.height
        assert 0 < row.area <= width * height < 1 << 26


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(disc_image(9)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@FUZZING
@given(data=st.data())
def test_a_damaged_image_is_unreadable_or_an_image(kind, data):
    damaged = data.draw(mutated_bytes(encoded(kind)))
    try:
        image = decode_rgba(damaged, "x.png")
    except BadImage as error:
        assert "x.png" in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 4


@pytest.mark.parametrize(
    "kind_of_maker", [2, 1, 27]
)  # a text, and what Pillow cannot write again: bytes, nothing
def test_a_photograph_is_upright_whatever_else_its_exif_data_says(kind_of_maker, tmp_path):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "x" * 20
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, 12:] = 255
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    photo = bytearray(buffer.getvalue())
    photo[photo.index(b"Exif") + 17] = kind_of_maker
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    upright = read_upright(str(path), (24, 16))
    assert upright[:11].max() < 50 and upright[13:].min() > 200
    with pytest.raises(BadImage, match=r"has 16 x 24 pixels, not 24 x 16 as annotated"):
        read_upright(str(path), (16, 24))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_upright_by_any_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    photo = Image.fromarray(np.indices((16, 24)).sum(axis=0).astype(np.uint8) * 6)
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "photo.jpg") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    upright = read_upright(str(tmp_path / "photo.jpg"), expected.shape[:2])
    np.testing.assert_array_equal(upright, expected)


def test_greys_of_16_bits_are_no_white(tmp_path):
    grey = np.arange(0, 1 << 16, 1 << 8, dtype=np.uint16).reshape(16, 16) + np.uint16(255)
    Image.fromarray(grey).save(tmp_path / "x.png")
    for read in (read_upright(str(tmp_path / "x.png"), (16, 16)), read_rgba(str(tmp_path / "x.png"))):
        np.testing.assert_array_equal(read[..., 1], np.arange(256).reshape(16, 16))


def test_an_image_that_claims_to_be_huge_is_refused():
    header = bytearray(png(disc_image(3)))
    for side, reason in ((100_000, "huge"), (8_001, "claims 8001 x 8001 pixels"), (8_000, "does not decode")):
        header[16:24] = side.to_bytes(4, "big") * 2  # width and height of the PNG header, then its checksum
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        with pytest.raises(BadImage, match=reason):
            decode_rgba(bytes(header), "huge.png")
    for size in ((16_384, MAX_PIXELS // 16_384), (1, 16_384)):
        Image.new("1", size).save(long := io.BytesIO(), format="PNG")
        with pytest.raises(BadImage, match="claims {} x {}".format(*size)):
            decode_rgba(long.getvalue(), "long.png")
    assert decode_rgba(encode_png(np.zeros((1, 16_383), np.uint8)), "longest.png").shape == (1, 16_383, 4)


@FUZZING
@given(data=st.data())
def test_a_damaged_mask_has_a_record_or_none(data, tmp_path):
    path = tmp_path / "mask.png"
    whole = encode_png(np.zeros((9, 9), np.uint8), vars(POOL[0]))
    path.write_bytes(data.draw(mutated_bytes(whole)))
    assert read_record(PoolInstance, str(path)) in (POOL[0], None)
