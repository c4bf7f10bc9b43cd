"""What took how long, over calls and processes."""

from pathlib import Path

import pytest

from exchange import files, seconds
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.seconds import Stopwatch, read_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(seconds.time, "monotonic", lambda: now[0])
    return lambda taken: now.__setitem__(0, now[0] + taken)


def test_calls_and_processes_are_added_up_by_round_and_work(tmp_path, clock):
    layout = RunLayout(str(tmp_path))
    for process, taken in (("train", 3.0), ("train", 4.0), ("segment_0of1", 5.0)):
        with Stopwatch(layout, process).measure(2, process):
            clock(1.0)
        with Stopwatch(layout, process).measure(-1, "evaluating"):
            clock(taken)
    (tmp_path / "seconds/train.json.part").write_bytes(b"{")  # is none of ours
    in_order = [(-1, {"evaluating": 12.0}), (2, {"segment_0of1": 1.0, "train": 2.0})]
    assert list(read_seconds(layout).items()) == in_order


def test_what_is_measured_within_a_work_does_not_count_for_it_and_is_written_with_it(tmp_path, clock):
    layout = RunLayout(str(tmp_path))
    watch = Stopwatch(layout, "segment_0of1")
    with watch.measure(0, "cutting out"):
        for _ in range(2):
            clock(1.0)
            with watch.measure(0, "loading"):
                clock(3.0)
                with watch.measure(0, "waiting"):
                    clock(10.0)
        assert not files.exists(layout.seconds_dir)
    with watch.measure(0, "filtering"):
        clock(0.5)
    assert read_seconds(layout) == {
        0: {"waiting": 20.0, "loading": 6.0, "cutting out": 2.0, "filtering": 0.5}
    }


def test_work_that_ends_with_an_error_counts(tmp_path, clock):
    layout = RunLayout(str(tmp_path))
    with pytest.raises(KeyError), Stopwatch(layout, "train").measure(1, "training"):
        clock(6.0)
        raise KeyError
    assert read_seconds(layout) == {1: {"training": 6.0}}


def test_a_run_that_says_nothing_took_nothing(tmp_path):
    assert read_seconds(RunLayout(str(tmp_path))) == {}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        '{"a": {}}',
        '{"0": [1]}',
        '{"0": {"a": "x"}}',
        '{"0": {"a": null}}',
        '{"0": {"a": 1%s}}' % ("0" * 400),
        '{"0": {"a": NaN, "b": 1}}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_damaged_file_is_named(content, tmp_path):
    layout = RunLayout(str(tmp_path))
    Path(layout.seconds_dir).mkdir()
    (tmp_path / "seconds/train.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="seconds/train.json does not tell what took how long"):
        read_seconds(layout)
