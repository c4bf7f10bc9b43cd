"""Damaged input of every kind: a reader raises its documented error or reads something correctly typed."""

import copy
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diSegmenter.images import MAX_PIXELS, UnreadableImage, decode_rgba, read_record, write_alpha
from diSegmenter.pool.foreign import read_xpaste
from exchange import files
from exchange.annotations import read_annotations
from exchange.errors import UserError
from exchange.feedback import Feedback, read_feedback
from exchange.manifest import GeneratedInstance, Manifest, read_manifest
from tests.diSegmenter.conftest import CATEGORIES, disc_image, png

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
INSTANCE = GeneratedInstance("00_0003_0000.png", 3, 0, 1, "a photo of {}", "a photo of red disc", False)
MANIFEST = Manifest(0, 0, 1, "m", True, {3: 1}, [INSTANCE], 1.5)
FEEDBACK = Feedback(
    0, 9, "c.pth", "ab", "d", [3, 7], [1.0, None], [2.0, 3.0], [0.1, 0.2], 1.0, 2.0, None, 2.0, 3.0, "t"
)
ANNOTATIONS = {
    "images": [{"id": 1, "height": 4, "width": 5, "file_name": "a.png"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 4, "segmentation": []}
    ],
    "categories": CATEGORIES,
}
READERS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "manifest": (read_manifest, {"format": 1, **dataclasses.asdict(MANIFEST)}),
    "feedback": (read_feedback, {"format": 1, **dataclasses.asdict(FEEDBACK)}),
    "annotations": (read_annotations, ANNOTATIONS),
    "X-Paste's list": (
        lambda path: list(read_xpaste(path, "/", [3, 7])),
        {"0": ["*a.png"], "1": ["b.png|c.png"]},
    ),
}
RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def spots(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value inside a JSON value, and of the whole."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] + [spot for key, item in inner for spot in spots(item, (*place, key))]


def put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    changed = copy.deepcopy(value)
    target = changed
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = new
    return changed


@pytest.mark.parametrize("reader", READERS)
@RELAXED
@given(data=st.data())
def test_json_with_a_value_exchanged(reader, data, tmp_path):
    read, content = READERS[reader]
    path = str(tmp_path / "file.json")
    content = json.loads(json.dumps(content))
    place = data.draw(st.sampled_from(spots(content)))
    files.write_bytes(path, json.dumps(put(content, place, data.draw(JSON))).encode())
    try:
        read(path)
    except UserError as error:
        assert "file.json" in str(error)


@pytest.mark.parametrize("reader", READERS)
@RELAXED
@given(data=st.data())
def test_json_with_bytes_changed_or_cut_off(reader, data, tmp_path):
    read, content = READERS[reader]
    path = str(tmp_path / "file.json")
    damaged = bytearray(json.dumps(content).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    files.write_bytes(path, bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    try:
        read(path)
    except UserError as error:
        assert "file.json" in str(error)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(disc_image(9)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@RELAXED
@given(data=st.data())
def test_a_damaged_image_is_unreadable_or_an_image(kind, data):
    damaged = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_rgba(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), "x.png")
    except UnreadableImage as error:
        assert "x.png" in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 4


def test_an_image_that_claims_to_be_huge_is_refused():
    header = bytearray(png(disc_image(3)))
    header[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height of the PNG header
    with pytest.raises(UnreadableImage):
        decode_rgba(bytes(header), "huge.png")
    long = io.BytesIO()
    Image.new("1", (16_384, MAX_PIXELS // 16_384)).save(long, format="PNG")
    with pytest.raises(UnreadableImage, match="claims 16384"):
        decode_rgba(long.getvalue(), "long.png")


@RELAXED
@given(data=st.data())
def test_a_damaged_mask_has_a_record_or_none(data, tmp_path):
    path = tmp_path / "mask.png"
    write_alpha(str(path), np.zeros((9, 9), np.uint8), {"area": 3})
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    Path(path).write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    assert read_record(str(path)) in ({"area": 3}, None)
