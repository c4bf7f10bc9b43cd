"""Threads that read and write side by side."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

READERS = 16  # a bucket answers each read late, and many at once


@contextmanager
def side_by_side(number: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads, whose work is done when the block ends; where that is interrupted or the block fails, what has
    begun is brought to its end and nothing more begins."""
    threads = ThreadPoolExecutor(number)
    try:
        yield threads
        threads.shutdown()
    except BaseException:
        threads.shutdown(cancel_futures=True)
        raise
