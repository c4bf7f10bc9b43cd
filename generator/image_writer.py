"""Writes generated images, each with its record, beside the GPU's work."""

import dataclasses
import queue
import threading
from types import TracebackType

import numpy as np
import numpy.typing as npt

from exchange import files
from exchange.images import encode_png
from exchange.manifest import GeneratedInstance


class ImageWriter:
    """Encodes and writes images in a thread, each whole or not at all.

    A context manager: leaving it waits for what is queued. :meth:`put` blocks while ``depth`` images wait.
    What goes wrong in the thread is raised by the next call of :meth:`put`, or on leaving. ``written``
    grows by the record of each image that is on disk.
    """

    def __init__(self, depth: int = 64) -> None:
        self._queue: queue.Queue[tuple[str, npt.NDArray[np.uint8], GeneratedInstance] | None] = queue.Queue(
            depth
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="image writer", daemon=True)
        self.written: list[GeneratedInstance] = []

    def __enter__(self) -> "ImageWriter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def put(self, path: str, pixels: npt.NDArray[np.uint8], record: GeneratedInstance) -> None:
        """Queues one image for the file ``path``."""
        self._raise()
        self._queue.put((path, pixels, record))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:  # keep the queue moving, so that nobody waits for ever
                continue
            path, pixels, record = item
            try:
                files.write_bytes(path, encode_png(pixels, dataclasses.asdict(record)))
                self.written.append(record)
            except BaseException as error:  # raised again in the thread that draws
                self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
