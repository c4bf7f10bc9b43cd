import dataclasses
import math
import pickle
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest

from exchange import files, pool_index
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance, join_parts, write_index, write_part
from tests.diSegmenter.conftest import pool_instance


def instance(round_: int, category_id: int, number: int, reason: str = "") -> PoolInstance:
    segmentation = [[number, 2, 30, 2, 30, 40 + number], [1, 2, 64, 4, 5, 48]]  # to the edge
    values = {"width": 64, "height": 48, "bbox": [number, 2, 31, 39], "area": 700 + number, "seed": 1 << 62}
    values |= {"segmentation": segmentation, "clip_black": 26.25, "reason": reason}
    return pool_instance(round_, category_id, number, **values)


@pytest.fixture(params=["folder", "memory"])
def layout(request, tmp_path) -> RunLayout:
    root = str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"
    return RunLayout(root)


ROUND_0 = [instance(0, 9, 0), instance(0, 4, 1, "CLIP score"), instance(0, 4, 2)]
ROUND_1 = [instance(1, 7, 0, "too small"), instance(1, 7, 1)]


def test_the_pool_is_the_kept_rows_of_its_rounds_in_order(layout, monkeypatch):
    monkeypatch.setattr(pool_index, "_ROWS_AT_ONCE", 2)
    write_index(layout, 0, ROUND_0)
    write_index(layout, 1, ROUND_1)
    index = PoolIndex(layout, [0, 1])
    assert list(index) == [index[0], index[1], index[2]] == [ROUND_0[0], ROUND_0[2], ROUND_1[1]]
    np.testing.assert_array_equal(index.category_ids, [9, 4, 7])
    np.testing.assert_array_equal(index.column("round"), [0, 0, 1])
    assert list(PoolIndex(layout, [1])) == [ROUND_1[1]]
    assert index.column("file").tolist() == [row.file for row in index]
    np.testing.assert_array_equal(index.column("clip_black"), [26.25] * 3)
    assert list(PoolIndex(layout, [1], dropped_too=True)) == ROUND_1
    assert list(PoolIndex(layout, [1, 0])) == [ROUND_1[1], ROUND_0[0], ROUND_0[2]]


def test_instances_that_are_left_out_are_so_in_other_processes_too(layout):
    write_index(layout, 0, ROUND_0)
    write_index(layout, 1, ROUND_1)
    left_out = frozenset([ROUND_0[0].file, ROUND_1[0].file, "another.png"])
    index = PoolIndex(layout, [0, 1], left_out=left_out)
    for one in (index, pickle.loads(pickle.dumps(index))):
        assert list(one) == [ROUND_0[2], ROUND_1[1]] and one.file(1) == ROUND_1[1].file
    index = PoolIndex(layout, [1, 0], dropped_too=True, left_out=left_out)
    for one in (index, pickle.loads(pickle.dumps(index))):
        assert list(one) == [ROUND_1[1], *ROUND_0[1:]]


@pytest.mark.parametrize("lacking", [1, 2, 3])
def test_an_index_from_before_there_were_columns_is_read(layout, monkeypatch, lacking):
    with monkeypatch.context() as patched:
        patched.setattr(pool_index, "_SCHEMA", pool_index._SCHEMAS[lacking])
        write_index(layout, 0, ROUND_0)
    of_today = dataclasses.replace(ROUND_1[1], foreground="some/matting", similarity=0.5, judge=0.25)
    write_index(layout, 1, [of_today])
    index = PoolIndex(layout, [0, 1])
    assert index.column("foreground").tolist() == ["", "", "some/matting"]
    np.testing.assert_array_equal(index.column("similarity"), [np.nan, np.nan, 0.5])
    np.testing.assert_array_equal(index.column("judge"), [np.nan, np.nan, 0.25])
    assert list(index) == [ROUND_0[0], ROUND_0[2], of_today]


def test_a_round_with_nothing_kept_is_no_obstacle(layout):
    write_index(layout, 0, [])
    write_index(layout, 1, ROUND_1[:1])
    assert len(PoolIndex(layout, [0, 1])) == len(PoolIndex(layout, [])) == 0
    write_index(layout, 2, ROUND_1)
    assert len(PoolIndex(layout, [0, 1, 2])) == 1


@pytest.mark.parametrize("rows_in_a_batch", [1, 2, 99])
@pytest.mark.parametrize("target", [0, 5])
def test_instances_are_written_as_another_round_or_their_own_with_other_values(
    layout, monkeypatch, rows_in_a_batch, target
):
    monkeypatch.setattr(pool_index, "_ROWS_PER_BATCH", rows_in_a_batch)
    write_index(layout, 0, ROUND_0)
    index = PoolIndex(layout, [0])
    lengths, cutouts = np.array([-1, 1 << 40]), np.array(["cutouts/ä.webp", "cutouts/b.tar"], object)
    index.write_as(layout, target, round=np.full(2, target), length=lengths, cutout=cutouts)
    assert list(PoolIndex(layout, [target], dropped_too=True)) == [
        dataclasses.replace(ROUND_0[0], round=target, length=-1, cutout="cutouts/ä.webp"),
        dataclasses.replace(ROUND_0[2], round=target, length=1 << 40, cutout="cutouts/b.tar"),
    ]
    assert list(index) == [ROUND_0[0], ROUND_0[2]]  # who has them open keeps them


def test_a_score_that_nobody_measured_is_nan_in_its_column(layout):
    write_index(layout, 0, [dataclasses.replace(ROUND_0[0], clip_white=None, clip_black=None)])
    index = PoolIndex(layout, [0])
    assert np.isnan(index.column("clip_white")).all() and index[0].clip_score is None
    assert dataclasses.replace(index[0], clip_black=9.0).clip_score == 9.0
    assert dataclasses.replace(index[0], clip_white=10.0, clip_black=9.0).clip_score == 10.0
    assert dataclasses.replace(index[0], clip_white=0.0, clip_black=-9.0).clip_score == 0.0


def test_a_cut_out_is_a_file_or_a_piece_of_one(layout):
    packed = dataclasses.replace(ROUND_0[2], cutout="cutouts/rd00.tar", offset=3, length=4)
    write_index(layout, 0, [ROUND_0[0], packed, dataclasses.replace(packed, length=0)])
    files.write_bytes(layout.pool("cutouts/rd00.tar"), b"abcdefghij")
    files.write_bytes(layout.pool(ROUND_0[0].cutout), b"whole")
    index = PoolIndex(layout, [0])
    assert [index.read(row) for row in range(3)] == [b"whole", b"defg", b""]
    files.write_bytes(layout.pool("cutouts/rd00.tar"), b"abcdef")
    with pytest.raises(UserError, match="cut off"):
        index.read(1)


def test_an_index_is_there_only_when_its_outlines_are(layout, monkeypatch):
    monkeypatch.setattr(pool_index, "write_batches", written := Mock())
    write_index(layout, 0, ROUND_0)
    write_part(layout, 0, 2, ROUND_0)
    join_parts(layout, 0, 3)
    whole, part = [layout.pool_outlines(0), layout.pool_index(0)], [layout.pool_part_outlines(0, 2)]
    assert [call.args[0] for call in written.call_args_list] == [
        *whole,
        *part,
        layout.pool_part(0, 2),
        *whole,
    ]


def test_a_missing_index_is_named(layout):
    with pytest.raises(UserError, match=r"rd03\.arrow"):
        PoolIndex(layout, [3])


def test_outlines_of_another_index_are_refused(layout):
    write_index(layout, 0, ROUND_0)
    other = files.read_bytes(layout.pool_outlines(0))
    write_index(layout, 0, ROUND_1)
    files.write_bytes(layout.pool_outlines(0), other)
    with pytest.raises(UserError, match=r"rd00\.outlines\.arrow: not the outlines"):
        PoolIndex(layout, [0])[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((name, None) for name in ("file", "category_id", "bbox", "area", "reason", "seed", "cutout", "length")),
        *(("bbox", box) for box in ([0, 0, 0, 9], [-1, 0, 9, 9], [60, 2, 31, 39], [0, 9, 31, 40], [0, 0, -9, 9])),
        ("bbox", [0, 1, 1, (1 << 31) - 1]),
        ("bbox", [0, 2, 31, None]),
        ("bbox", [0, -1, 9, 9]),
        *(("width", width) for width in (-1, 0, 16_384)),
        *(("height", height) for height in (0, 16_384)),
        *(("area", area) for area in (-1, 0, 31 * 39 + 1)),
        *((name, -1) for name in ("round", "category_id", "objects", "offset")),
        ("length", -2),
        *((name, math.nan) for name in ("clip_white", "clip_black", "similarity", "judge")),
        ("clip_white", math.inf),
        *(("file", name) for name in ("", "..", ".x", "a/b", "a\\b", "a\0b", "x" * 201, "ä" * 101)),
        *(("cutout", name) for name in ("", "../../secret", "/etc/x", "a/../../x", "a//b", "a\\b", "a/.x", "x" * 201)),
    ],
)  # fmt: skip
def test_a_value_that_no_pool_holds_is_named_as_the_index_is_opened(tmp_path, monkeypatch, column, value):
    monkeypatch.setattr(pool_index, "_ROWS_PER_BATCH", 2)
    layout = RunLayout(str(tmp_path))
    write_index(layout, 0, [*ROUND_0, dataclasses.replace(ROUND_0[2], **{column: value})])
    with pytest.raises(UserError, match=rf"rd00\.arrow is damaged \('{column}' "):
        PoolIndex(layout, [0])


def test_values_at_their_bounds_are_those_of_a_pool(tmp_path):
    layout = RunLayout(str(tmp_path))
    least = {
        "round": 0,
        "category_id": 0,
        "width": 1,
        "height": 1,
        "bbox": [0, 0, 1, 1],
        "area": 1,
        "objects": 0,
    }
    most = {"width": 8000, "height": 8000, "bbox": [0, 0, 8000, 8000], "area": 64_000_000}  # pixels in all …
    most |= {"file": "x" * 200, "cutout": "y" * 200}
    sides = [{"width": 16_383, "height": 3906}, {"width": 3906, "height": 16_383}]  # … and on a side
    rows = [dataclasses.replace(ROUND_0[0], **values, segmentation=[]) for values in (least, most, *sides)]
    write_index(layout, 0, rows)
    assert list(PoolIndex(layout, [0])) == rows
    write_index(layout, 0, [dataclasses.replace(rows[1], width=8001)])
    with pytest.raises(UserError, match="'width' of 'x+' is 8001"):
        PoolIndex(layout, [0])


def test_a_dropped_instance_may_show_nothing(tmp_path):
    layout = RunLayout(str(tmp_path))
    write_index(layout, 0, [dataclasses.replace(ROUND_1[0], bbox=[0, 0, 0, 0], area=0, segmentation=[])])
    assert len(PoolIndex(layout, [0], dropped_too=True)) == 1


@pytest.mark.parametrize(
    "segmentation",
    [None, [None], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]]
    + [[[-1, 2, 3, 4, 5, 6]], [[1, 2, 3, 49, 5, 6]], [[1, 2, 3, 4, 65, 6]], [[1, 2, 3, None, 5, 6]]],
)  # fmt: skip
def test_a_polygon_that_is_none_or_leaves_its_image_is_refused_as_the_outlines_are_opened(
    tmp_path, segmentation
):
    layout = RunLayout(str(tmp_path))
    wide = dataclasses.replace(ROUND_0[0], width=500, height=500)
    write_index(layout, 0, [wide, dataclasses.replace(ROUND_0[2], segmentation=segmentation)])
    with pytest.raises(UserError, match=r"rd00\.outlines\.arrow: damaged \(a polygon"):
        PoolIndex(layout, [0])[0]


@pytest.mark.parametrize(
    ("compression", "message"), [("zstd", "or is compressed"), (None, "'area' of '00_0004_0002.png' is 0")]
)
def test_a_compressed_index_is_refused_before_it_takes_memory(tmp_path, compression, message):
    layout = RunLayout(str(tmp_path))
    write_index(layout, 0, [dataclasses.replace(ROUND_0[2], area=0, prompt="x" * 10_000_000)])
    with pa.ipc.open_file(layout.pool_index(0)) as reader:
        table = reader.read_all()
    with pa.ipc.new_file(
        layout.pool_index(0), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=message):
        PoolIndex(layout, [0])


def test_a_name_that_is_not_unicode_is_refused(tmp_path):
    layout = RunLayout(str(tmp_path))
    write_index(layout, 0, ROUND_0)
    whole = files.read_bytes(layout.pool_index(0))
    files.write_bytes(layout.pool_index(0), whole.replace(b"tiny", b"ti\xffy"))
    with pytest.raises(UserError, match=r"rd00\.arrow is damaged \(.*UTF8"):
        PoolIndex(layout, [0])
