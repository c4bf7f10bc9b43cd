"""Arrow IPC files that nobody vouches for: mapped, whole, of a known schema, and no larger in memory than on disk."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from exchange import files


def write_batches(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes the batches one by one, all of them or no file; returns the number of rows."""
    rows = 0
    with files.atomic_writer(path) as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def open_batches(path: str, schemas: Sequence[pa.Schema]) -> list[pa.RecordBatch] | None:
    """The record batches of a file, mapped if it is local; None if its schema, with its metadata, is another one.

    Raises pa.ArrowException, OSError or ValueError where the file is damaged.
    """
    source = pa.BufferReader(files.read_bytes(path)) if "://" in path else pa.memory_map(path)
    reader = pa.ipc.open_file(source)
    schema = next((known for known in schemas if reader.schema.equals(known, check_metadata=True)), None)
    if schema is None:
        return None
    source.seek(8)  # the same messages follow the file's magic number, one after the other
    _, *messages = pa.ipc.MessageReader.open_stream(source)
    if len(messages) != reader.num_record_batches or any(map(_is_compressed, messages)):
        raise ValueError("it lacks a part, or is compressed")
    batches = [pa.ipc.read_record_batch(message, schema) for message in messages]
    for batch in batches:
        batch.validate(full=True)
    return batches


def _is_compressed(message: pa.Message) -> bool:
    """Whether a record batch is: reading it might take any amount of memory, and this project compresses none.

    Arrow does not tell before it has unpacked the batch, but its format does: field 3 of the table RecordBatch, to
    which field 2 of the table Message leads.
    """
    data = message.metadata.to_pybytes()

    def field(table: int, number: int) -> int:
        vtable = table - int.from_bytes(data[table : table + 4], "little", signed=True)
        size = int.from_bytes(data[vtable : vtable + 2], "little")
        place = vtable + 4 + 2 * number
        offset = int.from_bytes(data[place : place + 2], "little") if 4 + 2 * number < size else 0
        return table + offset if offset else 0

    header = field(int.from_bytes(data[:4], "little"), 2)
    return bool(field(header + int.from_bytes(data[header : header + 4], "little"), 3))
