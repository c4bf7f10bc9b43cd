import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from exchange.threads import side_by_side


def test_what_has_begun_when_a_block_fails_is_brought_to_its_end_and_nothing_more_begins():
    begun, may_end, done = threading.Event(), threading.Event(), []

    def work(number):
        begun.set()
        may_end.wait(60)
        done.append(number)

    with pytest.raises(KeyboardInterrupt), side_by_side(1) as threads:
        threads.map(work, range(100))
        begun.wait(60)
        threading.Timer(0.1, may_end.set).start()
        raise KeyboardInterrupt
    assert done == [0]


def test_all_is_done_when_a_block_ends():
    done = []
    with side_by_side(2) as threads:
        threads.map(done.append, range(100))
    assert sorted(done) == list(range(100))


def test_what_has_not_begun_when_the_wait_at_a_block_s_end_is_interrupted_does_not_begin(monkeypatch):
    begun, may_end, done = threading.Event(), threading.Event(), []
    shutdown = ThreadPoolExecutor.shutdown

    def work(number):
        begun.set()
        may_end.wait(60)
        done.append(number)

    def interrupted(*args, cancel_futures=False, **options):
        if cancel_futures:
            return shutdown(*args, cancel_futures=True, **options)
        begun.wait(60)
        threading.Timer(0.1, may_end.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt), side_by_side(1) as threads:
        threads.map(work, range(100))
    assert done == [0]
