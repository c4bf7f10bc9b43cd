import dataclasses

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


@pytest.mark.parametrize("images", [1, 5])  # 5: more than the queue holds, nobody waits for ever
def test_what_fails_in_the_thread_is_raised_where_images_are_drawn(images, tmp_path, monkeypatch):
    def fail(path, data):
        raise PermissionError(13, "no", path)

    monkeypatch.setattr(files, "write_bytes", fail)
    with pytest.raises(PermissionError), ImageWriter(depth=1) as writer:
        for _ in range(images):
            writer.put(str(tmp_path / "a.png"), PIXELS, RECORD)
    assert writer.written == []
