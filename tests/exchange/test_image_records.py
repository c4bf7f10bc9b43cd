import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from exchange.images import encode_png, read_record
from exchange.manifest import GeneratedInstance
from exchange.twins import Twins, read_twins, twins_record, write_twins

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
RECORD = GeneratedInstance("00_0001_0001.png", 1, 1, 2**62, "a {}", "a Schnürsenkel – 靴", True, 0.5, 0.75)


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]], ids=["image", "mask"])
def test_image_and_record_come_back_as_they_were(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(pixels, dataclasses.asdict(RECORD)))
    assert read_record(GeneratedInstance, str(path)) == RECORD
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert (b"zTXt" in path.read_bytes()) == (pixels.ndim == 2)  # a mask's record holds outlines
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_png(pixels, {"criterion": float("nan")})


@pytest.mark.parametrize("length", [0, 7, 60, 200, -1])
def test_file_that_was_cut_off_has_no_record(tmp_path, length):
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(PIXELS, dataclasses.asdict(RECORD))[:length])
    assert read_record(GeneratedInstance, str(path)) is None


@pytest.mark.parametrize("files", [[], ["b.png"]])
def test_a_picture_of_no_twins_or_of_more_than_were_judged_has_no_record(tmp_path, files):
    (tmp_path / "a.png").write_bytes(encode_png(PIXELS, {"files": files, "criterion": []}))
    assert twins_record(str(tmp_path / "a.png")) is None


def test_twins_stand_side_by_side_and_come_back_as_they_were(tmp_path):
    twins, images = Twins(["b.png", "c.png"], [0.5, None]), [PIXELS, PIXELS[::-1]]
    write_twins(str(tmp_path / "a.png"), twins, images)
    record, found = read_twins(str(tmp_path / "a.png"))
    assert record == twins
    np.testing.assert_array_equal(found, images)


def test_foreign_images_and_missing_files_have_no_record(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "plain.png")
    Image.fromarray(PIXELS).save(tmp_path / "photo.jpg")
    for name in ("plain.png", "photo.jpg", "missing.png", "."):
        assert read_record(GeneratedInstance, str(tmp_path / name)) is None


@pytest.mark.parametrize(
    "text", ["[" * 100_000, json.dumps(vars(RECORD) | {"criterion_after": float("nan")}), '{"file": 3}', "{"]
)
def test_a_record_of_another_kind_is_none(tmp_path, text):
    info = PngInfo()
    info.add_text("mrca", text)
    Image.fromarray(PIXELS).save(tmp_path / "a.png", pnginfo=info)
    assert read_record(GeneratedInstance, str(tmp_path / "a.png")) is None
