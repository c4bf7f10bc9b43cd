import pytest

from exchange import waiting
from exchange.errors import UserError
from exchange.waiting import wait_for


def test_a_wait_says_for_what_where_since_when_and_who_makes_it_and_repeats_that(
    tmp_path, monkeypatch, caplog
):
    path, clock = tmp_path / "rd03.done", [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(waiting.time, "strftime", lambda form: "noon")
    caplog.set_level("INFO")
    with pytest.raises(
        UserError, match=r"600 s \(since noon\) for the pool in vain, .*rd03\.done .*\(mrca segment\)"
    ):
        wait_for(str(path), "the pool", "mrca segment", timeout_s=600, poll_s=7)
    assert clock == [600]  # not the 602 of whole pauses
    assert caplog.messages == [f"waiting since noon for the pool at {path}: mrca segment makes it"] * 4
    path.touch()
    wait_for(str(path), "the pool", "mrca segment", timeout_s=0)


def test_what_is_waited_for_is_looked_for_every_second(tmp_path, monkeypatch):
    pauses, path = [], tmp_path / "rd03.done"
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: pauses.append(seconds) or path.touch())
    wait_for(str(path), "the pool", "mrca segment", timeout_s=600)
    assert pauses == [1]
