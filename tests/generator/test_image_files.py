import dataclasses

import numpy as np
import pytest
from PIL import Image

from exchange import files
from exchange.manifest import GeneratedInstance
from generator.image_files import ImageWriter, encode, read_record

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
RECORD = GeneratedInstance("00_0001_0001.png", 1, 1, 2**62, "a {}", "a Schnürsenkel – 靴", True, 0.5, 0.75)


def test_image_and_record_come_back_as_they_were(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PIXELS, RECORD))
    assert read_record(str(path)) == RECORD
    assert np.array_equal(np.asarray(Image.open(path)), PIXELS)


@pytest.mark.parametrize("length", [0, 7, 60, 200, -1])
def test_file_that_was_cut_off_has_no_record(tmp_path, length):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PIXELS, RECORD)[:length])
    assert read_record(str(path)) is None


def test_foreign_images_and_missing_files_have_no_record(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "plain.png")
    Image.fromarray(PIXELS).save(tmp_path / "photo.jpg")
    for name in ("plain.png", "photo.jpg", "missing.png"):
        assert read_record(str(tmp_path / name)) is None


def test_writer_has_written_everything_when_it_is_left(tmp_path):
    records = [dataclasses.replace(RECORD, instance=i) for i in range(20)]
    with ImageWriter(depth=2) as writer:
        for i, record in enumerate(records):
            writer.put(str(tmp_path / f"{i}.png"), PIXELS, record)
    assert writer.written == records
    assert [read_record(str(tmp_path / f"{i}.png")) for i in range(20)] == records


def test_what_fails_in_the_thread_is_raised_where_images_are_drawn(tmp_path, monkeypatch):
    def fail(path, data):
        raise PermissionError(13, "no", path)

    monkeypatch.setattr(files, "write_bytes", fail)
    with pytest.raises(PermissionError), ImageWriter(depth=1) as writer:
        for _ in range(5):  # more than the queue holds: nobody waits for ever
            writer.put(str(tmp_path / "a.png"), PIXELS, RECORD)
    assert writer.written == []
