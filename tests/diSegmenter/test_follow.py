import itertools
from collections import Counter
from pathlib import Path

import pytest

from diSegmenter.segment_round import follow_round
from exchange import files, waiting
from exchange.errors import UserError
from tests.diSegmenter.conftest import generate


def test_a_complete_round_comes_at_once(layout):
    instances = generate(layout, 0, 5, 0, 2) + generate(layout, 0, 5, 1, 2)
    assert list(follow_round(layout, 0, timeout_s=0)) == [(5, instances)]
    with pytest.raises(UserError, match="round 0 in 2 shards, not in 1"):
        next(follow_round(layout, 0, timeout_s=0, num_shards=1))


def test_shards_that_have_listed_nothing_yet_are_waited_for(layout):
    instances = generate(layout, 0, 5, 0, 2)
    steps = follow_round(layout, 0, timeout_s=5, poll_s=0, num_shards=2)
    assert next(steps) == (3, instances)
    others = generate(layout, 0, 5, 1, 2)
    assert list(steps) == [(5, others)]


@pytest.fixture
def four_seconds(monkeypatch):
    """What each step takes of the five in which there must be something new."""
    clock = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(waiting.time, "sleep", lambda _: clock.__setitem__(0, clock[0] + 4))


def test_images_come_as_stage_1_lists_them_for_as_long_as_it_lists_some(layout, four_seconds):
    def told(step):
        return step[0], [instance.file for instance in step[1]]

    generate(layout, 0, 2, complete=False)
    steps = follow_round(layout, 0, timeout_s=5)
    assert told(next(steps)) == (2, ["00_0003_0000.png", "00_0007_0001.png"])
    generate(layout, 0, 4, complete=False)
    assert told(next(steps)) == (4, ["00_0003_0002.png", "00_0007_0003.png"])
    assert told(next(steps)) == (4, [])
    generate(layout, 0, 5)
    assert told(next(steps)) == (5, ["00_0003_0004.png"])
    assert next(steps, None) is None


def test_waiting_lists_the_folder_of_images_once_however_long_it_takes(layout, monkeypatch):
    listed, list_dir = Counter(), files.list_dir

    def counted(folder):
        listed[folder.rstrip("/").removeprefix(layout.root)] += 1
        return list_dir(folder)

    monkeypatch.setattr(files, "list_dir", counted)
    steps = follow_round(layout, 0, timeout_s=60, poll_s=0)
    for _ in range(5):
        assert next(steps) == (0, [])
    generate(layout, 0, 2, complete=False)
    for _ in range(5):
        next(steps)
    assert listed == {"/pool/manifests": 10, "/pool/raw": 1}


def test_what_a_finished_shard_has_listed_is_read_once_however_long_the_others_take(layout, monkeypatch):
    read, read_json = Counter(), files.read_json
    monkeypatch.setattr(files, "read_json", lambda path: read.update([path]) or read_json(path))
    generate(layout, 0, 6, 0, 2)
    generate(layout, 0, 3, 1, 2, complete=False)
    steps = follow_round(layout, 0, timeout_s=60, poll_s=0)
    for _ in range(4):
        next(steps)
    generate(layout, 0, 6, 1, 2)
    (total, listing), *more = steps
    assert (total, [i.file for i in listing], more) == (6, ["00_0007_0003.png", "00_0007_0005.png"], [])
    assert read == {layout.manifest(0, 0, 2): 1, layout.manifest(0, 1, 2): 5}


def test_a_run_whose_manifests_lie_among_its_images_is_read(layout):
    instances = generate(layout, 0, 3) + generate(layout, 1, 1)
    old = Path(layout.raw(Path(layout.manifest(0, 0, 1)).name))
    Path(layout.manifest(0, 0, 1)).rename(old)  # round 1 is of today
    found = [list(follow_round(layout, round_, timeout_s=0)) for round_ in (0, 1)]
    assert [len(listing) for ((_, listing),) in found] == [3, 1]
    assert layout.manifests(0) == [str(old)] and len(instances) == 4


def test_a_stage_1_that_stands_still_is_an_error_that_says_so(layout, four_seconds):
    generate(layout, 2, 4, 0, 2)
    with pytest.raises(
        UserError, match="waited 5 s .* round 2, of which 2 images are listed, .*FEEDBACK.TIMEOUT"
    ):
        list(itertools.islice(follow_round(layout, 2, timeout_s=5), 9))
