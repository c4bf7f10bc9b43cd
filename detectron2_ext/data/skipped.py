"""The account of files that a loader could not use."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from exchange.errors import UserError

_log = logging.getLogger(__name__)
LIMIT = 0.05  # share of a data set's images


class SkippedFiles:
    """Collects sentences about unusable files, each file once.

    Raises UserError from :meth:`add` when there are more than 5 % of ``num_images``, the size of the data
    set.
    """

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self.sentences: dict[str, None] = {}  # an ordered set

    def add(self, sentences: Iterable[str]) -> None:
        """Count files; the first time that one turns up it is logged."""
        for sentence in sentences:
            if sentence not in self.sentences:
                self.sentences[sentence] = None
                _log.warning("skipped %s", sentence)
        if len(self.sentences) > LIMIT * self._num_images:
            raise UserError(
                f"{len(self.sentences)} files of a data set of {self._num_images} images cannot be used, the "
                f"first is {next(iter(self.sentences))}: repair the data set or remove them from it"
            )

    def log(self) -> None:
        """List them all, for the end of a run."""
        if self.sentences:
            _log.warning("%d files were skipped:\n  %s", len(self.sentences), "\n  ".join(self.sentences))
