"""What is known of an Arrow file before it is unpacked."""

import struct
from types import SimpleNamespace

import pyarrow as pa
import pytest

from exchange.arrow_files import _is_compressed


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
