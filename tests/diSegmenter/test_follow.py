import pytest

from diSegmenter.segment_round import follow_round
from exchange import files
from exchange.errors import UserError
from tests.diSegmenter.conftest import generate


def test_a_complete_round_comes_at_once(layout):
    instances = generate(layout, 0, 5, 0, 2) + generate(layout, 0, 5, 1, 2)
    assert list(follow_round(layout, 0, timeout_s=0)) == [(5, [(i, "tiny") for i in instances])]


def test_images_come_as_stage_1_lists_them_for_as_long_as_it_lists_some(layout, monkeypatch):
    def names(step):
        return [instance.file for instance, _ in step[1]]

    generate(layout, 0, 2, complete=False)
    clock = [0.0]  # each step takes four of the five seconds in which there must be something new
    monkeypatch.setattr(files.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(files.time, "sleep", lambda _: clock.__setitem__(0, clock[0] + 4))
    steps = follow_round(layout, 0, timeout_s=5)
    assert names(next(steps)) == ["00_0003_0000.png", "00_0007_0001.png"]
    generate(layout, 0, 4, complete=False)
    assert names(next(steps)) == ["00_0003_0002.png", "00_0007_0003.png"]
    assert names(next(steps)) == []
    generate(layout, 0, 5)
    assert names(next(steps)) == ["00_0003_0004.png"]
    assert next(steps, None) is None


def test_a_stage_1_that_stands_still_is_an_error_that_says_so(layout):
    generate(layout, 2, 4, 0, 2)
    with pytest.raises(
        UserError, match="waited 0 s .* round 2, of which 2 images are listed, .*FEEDBACK.TIMEOUT"
    ):
        list(follow_round(layout, 2, timeout_s=0))
