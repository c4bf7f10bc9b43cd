import dataclasses
import threading
from unittest.mock import Mock

import numpy as np
import pytest

from exchange import files
from exchange.images import read_record
from exchange.manifest import GeneratedInstance
from generator.image_writer import ImageWriter

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
RECORD = GeneratedInstance("00_0001_0001.png", 1, 1, 2**62, "a {}", "a Schnürsenkel – 靴", True, 0.5, 0.75)


def test_writer_has_written_everything_when_it_is_left(tmp_path):
    records = [dataclasses.replace(RECORD, instance=i) for i in range(20)]
    with ImageWriter(depth=2) as writer:
        for i, record in enumerate(records):
            writer.put(str(tmp_path / f"{i}.png"), PIXELS, record)
    assert writer.written == records
    assert [read_record(GeneratedInstance, str(tmp_path / f"{i}.png")) for i in range(20)] == records


@pytest.mark.parametrize("images", [1, 3])  # 3: one fails, one is queued and one waits until there is room
def test_what_fails_in_the_thread_is_raised_where_images_are_drawn(images, tmp_path, monkeypatch):
    writer, raised, last_is_put = ImageWriter(depth=1), [], threading.Event()

    def fail(path, data, write=files.write_bytes):
        monkeypatch.setattr(files, "write_bytes", write)  # what is queued could be written
        last_is_put.wait()
        raise PermissionError(13, "no", path)

    def draw():
        try:
            with writer:
                for number in range(1, images + 1):
                    if number == images:
                        threading.Timer(0.05, last_is_put.set).start()
                    writer.put(str(tmp_path / "a.png"), PIXELS, RECORD)
        except PermissionError as error:
            raised.append(error)

    monkeypatch.setattr(files, "write_bytes", fail)
    drawing = threading.Thread(target=draw, daemon=True)
    drawing.start()
    drawing.join(timeout=30)
    assert len(raised) == 1 and not drawing.is_alive() and writer.written == []


def test_no_more_is_drawn_after_an_image_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "write_bytes", Mock(side_effect=PermissionError(13, "no")))
    queued = []
    with pytest.raises(PermissionError), ImageWriter(depth=1) as writer:
        for number in range(9):
            writer.put(str(tmp_path / "a.png"), PIXELS, RECORD)
            queued.append(number)
    assert len(queued) <= 3  # the first one failed, the second was taken from the queue, the third is in it
