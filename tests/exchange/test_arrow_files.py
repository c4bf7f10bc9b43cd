"""What is known of an Arrow file before it is unpacked, and how it is opened."""

import struct
from types import SimpleNamespace

import pyarrow as pa
import pytest

from exchange.arrow_files import _is_compressed, open_batches, write_batches

SCHEMA = pa.schema([("text", pa.string())])


@pytest.mark.parametrize("tables_first", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_compression_is_seen_wherever_the_tables_lie(tables_first, compressed):
    """A message by the FlatBuffers format: a table points to its vtable, before or behind it, which has its fields."""
    message, batch, of_message, of_batch = (4, 12, 20, 30) if tables_first else (26, 34, 4, 14)
    data = bytearray(44)
    struct.pack_into("<I", data, 0, message)
    struct.pack_into("<iI", data, message, message - of_message, batch - (message + 4))
    struct.pack_into("<iI", data, batch, batch - of_batch, 4)
    struct.pack_into("<5H", data, of_message, 10, 8, 0, 0, 4)  # two sizes, then the places of fields 0 to 2
    struct.pack_into("<6H", data, of_batch, 12, 8, 0, 0, 0, 4 * compressed)
    assert _is_compressed(SimpleNamespace(metadata=pa.py_buffer(data))) == compressed


@pytest.fixture
def two_batches(tmp_path):
    path = tmp_path / "two.arrow"
    batches = [pa.record_batch([[f"{word} batch"]], schema=SCHEMA) for word in ("first", "second")]
    assert write_batches(str(path), SCHEMA, batches) == 2
    return path


def test_a_file_is_mapped_and_not_copied(two_batches):
    batches = open_batches(str(two_batches), [SCHEMA])
    with open(two_batches, "r+b") as file:
        file.seek(two_batches.read_bytes().index(b"second"))
        file.write(b"SECOND")
    assert [batch.to_pylist() for batch in batches] == [[{"text": "first batch"}], [{"text": "SECOND batch"}]]


def test_a_file_whose_messages_end_before_its_list_of_them_does_is_damaged(two_batches):
    begin, data = b"\xff\xff\xff\xff", two_batches.read_bytes()
    place = data.rindex(begin, 0, data.index(b"second"))
    end_of_stream = begin + bytes(4)
    two_batches.write_bytes(data[:place] + end_of_stream + data[place + len(end_of_stream) :])
    with pytest.raises(ValueError, match="lacks a part"):
        open_batches(str(two_batches), [SCHEMA])
