"""Threads that read and write side by side."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

READERS = 16  # a bucket answers each read late, and many at once


@contextmanager
def side_by_side(number: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads; where the block fails, what has begun is brought to its end and nothing more begins."""
    with ThreadPoolExecutor(number) as threads:
        try:
            yield threads
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
