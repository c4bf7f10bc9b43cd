"""Features of a pool: the same after a kill, made again only where they are missing, damaged or of another model."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diSegmenter.cut_out import on_white_square
from diSegmenter.pool import measure as measuring
from diSegmenter.pool.measure import measure
from exchange import files, pool_features
from exchange.arrow_files import write_batches
from exchange.errors import UserError
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.pool_features import PoolFeatures, add_features
from exchange.pool_index import write_index
from tests.diSegmenter.conftest import pool_instance

PARTS = {"PART": 3, "_BATCH": 2}


class Encoder:
    """Unit vectors of pictures, which it counts; fails when it has seen ``most`` of them."""

    def __init__(self, most: int = 999, width: int = 6) -> None:
        self.seen, self.most, self.width = 0, most, width

    def __call__(self, pictures):
        self.seen += len(pictures)
        if self.seen > self.most:
            raise KeyboardInterrupt
        vectors = np.stack([np.resize(picture.mean((0, 1)) - 100, self.width) for picture in pictures])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def add_round(layout: RunLayout, round_: int, count: int = 8, dropped: tuple[int, ...] = (4,)) -> list[str]:
    """Cut-outs of random pixels; returns the names of the kept ones."""
    rng = np.random.default_rng(round_)
    rows = [
        pool_instance(
            round_, 3, n, reason="too small" if n in dropped else "", cutout=f"cutouts/{round_}_{n}.png"
        )
        for n in range(count)
    ]
    for row in rows:
        pixels = rng.integers(0, 256, (11, 10, 4), np.uint8)
        files.write_bytes(layout.pool(row.cutout), encode_png(pixels))
    write_index(layout, round_, rows)
    return [row.file for row in rows if not row.reason]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    for name, value in PARTS.items():
        monkeypatch.setattr(measuring, name, value)


def run(layout: RunLayout, encode: Encoder, **made_from: str) -> list[tuple[int, int, int]]:
    return list(measure(layout, lambda: encode, {"model": "a"} | made_from))


def read(layout: RunLayout, names: list[str]) -> np.ndarray:
    features = PoolFeatures(layout, layout.pool_rounds())
    return features.read(features.rows(names))


def test_features_are_those_of_the_encoder_in_half_precision_and_of_kept_instances_alone(layout):
    names = add_round(layout, 0)
    encode, loads = Encoder(), []
    found = measure(layout, lambda: loads.append(None) or encode, {"model": "a"})
    assert list(found) == [(0, 7, 7)] and len(loads) == 1
    pictures = []
    for name in names:
        pixels = files.read_bytes(layout.pool(f"cutouts/0_{int(name[8:12])}.png"))
        pictures.append(on_white_square(measuring.decode_rgba(pixels, name)))
    found = read(layout, names)
    np.testing.assert_allclose(found, Encoder()(pictures), atol=1e-3)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(7), abs=1e-6)
    features = PoolFeatures(layout, [0])
    assert len(features) == 7 and features.rows([RunLayout.instance_name(0, 3, 4)]).tolist() == [-1]


def test_what_was_killed_goes_on_behind_its_last_whole_part_and_ends_as_if_it_had_not_been(layout, tmp_path):
    whole = RunLayout(str(tmp_path / "whole"))
    names = add_round(whole, 0)
    run(whole, Encoder())
    add_round(layout, 0)
    with pytest.raises(KeyboardInterrupt):
        run(layout, Encoder(most=4))
    files.write_bytes(left := layout.pool(f"features/x.{files._kernel()}-01234567.tmp"), b"")
    second = Encoder()
    assert run(layout, second) == [(0, 4, 7)] and second.seen == 4 and not files.exists(left)
    np.testing.assert_array_equal(read(layout, names), read(whole, names))


def test_a_round_that_is_added_and_an_instance_that_is_brought_back_are_all_that_is_encoded(layout):
    add_round(layout, 0)
    run(layout, Encoder())
    add_round(layout, 1, 5, ())
    second = Encoder()
    assert run(layout, second) == [(0, 0, 7), (1, 5, 5)] and second.seen == 5
    add_round(layout, 0, dropped=(0,))
    third = Encoder()
    assert run(layout, third) == [(0, 1, 7), (1, 0, 5)] and third.seen == 1
    assert list(measure(layout, lambda: pytest.fail("nothing is to be encoded"), {"model": "a"}))


@pytest.mark.parametrize("left", ["whole", "without saying from what", "with damage in what says it"])
def test_features_of_another_model_are_made_again(layout, left, caplog):
    names = add_round(layout, 0)
    run(layout, Encoder())
    if left == "whole":
        assert run(layout, Encoder(width=9), revision="b") == [(0, 7, 7)]
    else:
        if "damage" in left:
            files.write_bytes(layout.features_made_from(), b'{"model"')
        else:
            files.remove(layout.features_made_from())
            assert not len(PoolFeatures(layout, [0]))
        assert run(layout, Encoder(width=9)) == [(0, 7, 7)]
    assert read(layout, names).shape == (7, 9)
    assert (layout.features_made_from() in caplog.text) == ("damage" in left)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        (0, lambda data: data[:-9]),
        (1, lambda data: b""),
        (1, lambda data: data.replace(b"0_0003_0005", b"\xff" * 11)),
    ],
)
def test_a_damaged_part_is_named_and_measured_again_alone(layout, part, damage, caplog):
    names = add_round(layout, 0)
    run(layout, Encoder())
    before = read(layout, names)
    path = Path(layout.features(0, part))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"rd00_00{part}\.arrow is damaged .*run mrca pool measure again"):
        PoolFeatures(layout, [0])
    encode = Encoder()
    assert run(layout, encode) == [(0, 3, 7)] and encode.seen == 3
    assert [message.partition(" (")[0] for message in caplog.messages] == [f"{path} is damaged"]
    np.testing.assert_array_equal(read(layout, names), before)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 0.98, 1.02])
def test_what_is_no_unit_vector_is_no_feature(layout, value):
    add_round(layout, 0)
    run(layout, Encoder())
    add_features(layout, 0, ["a", "b"], np.array([[1.0, 0.0], [value, 0.0]]))
    with pytest.raises(UserError, match=r"rd00_003\.arrow is damaged \(a feature is no unit vector\)"):
        PoolFeatures(layout, [0])


@pytest.mark.parametrize(
    "names, vectors",
    [
        ([], []),
        (["a", None], [[1.0], [1.0]]),
        (["a", "b"], [[1.0], None]),
        (["a", "b"], [[0.6, 0.8], [0.6, None]]),
        (["a", "b"], [[], []]),
        (["a", "b"], [[1.0], [0.6, 0.8, 0.0]]),
    ],
)
def test_a_part_without_a_feature_for_each_name_is_damaged(layout, names, vectors):
    add_round(layout, 0)
    run(layout, Encoder())
    half = [v and [x if x is None else np.float16(x) for x in v] for v in vectors]
    columns = {"file": names, "feature": half}
    batch = pa.RecordBatch.from_pydict(columns, schema=pool_features._SCHEMA)
    write_batches(layout.features(0, 1), batch.schema, [batch])
    with pytest.raises(
        UserError, match=r"rd00_001\.arrow is damaged \((a name or a feature|features of several)"
    ):
        PoolFeatures(layout, [0])


def test_a_part_in_two_and_features_of_several_widths_are_refused(layout):
    add_round(layout, 0)
    run(layout, Encoder())
    whole = files.read_bytes(layout.features(0, 0))
    with pa.ipc.open_file(whole) as part:
        write_batches(layout.features(0, 0), part.schema, [part.get_batch(0)] * 2)
    with pytest.raises(UserError, match=r"rd00_000\.arrow is damaged \(not a part of a round\)"):
        PoolFeatures(layout, [0])
    files.write_bytes(layout.features(0, 0), whole)
    add_features(layout, 0, ["a"], np.eye(1, 5))
    with pytest.raises(UserError, match="features has features of several widths: remove the folder"):
        PoolFeatures(layout, [0])


def test_a_cut_out_that_does_not_decode_is_named(layout):
    add_round(layout, 0)
    files.write_bytes(layout.pool("cutouts/0_2.png"), b"no image")
    with pytest.raises(UserError, match=r"0_2\.png does not decode.*mrca pool verify"):
        run(layout, Encoder())


def test_an_object_stands_whole_in_the_middle_of_a_white_square():
    cutout = np.zeros((51, 11, 4), np.uint8)
    cutout[..., 3], cutout[0, :, 3] = 255, 51
    square = on_white_square(cutout)
    assert square.shape == (62, 62, 3)  # 1.2 x 51, rounded up
    expected = np.full((62, 62), 255)
    expected[5:56, 25:36], expected[5, 25:36] = 0, 204
    assert (square == expected[..., None]).all()
