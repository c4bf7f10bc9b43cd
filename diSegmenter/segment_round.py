"""One round of stage 2: decode, cut out, score, write."""

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from tqdm import tqdm

from diSegmenter.annotate import outline
from diSegmenter.checks import MaskCleaner
from diSegmenter.images import UnreadableImage, encode_cutout, is_whole, read_rgba, write_alpha
from exchange import files
from exchange.cutouts import Cutout, read_cutouts, read_round_cutouts, write_cutouts
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance

Foreground = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
Scorer = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[int]], np.ndarray]

_BATCHES_AHEAD = 2
_SECONDS_BETWEEN_RECORDS = 20.0


class RoundSegmenter:
    """Cuts out and scores the images of a round; an earlier call's work is kept.

    Args:
        foreground: uint8 images (H, W, 4) to uint8 alpha masks (H, W).
        scorer: images, masks and category ids to CLIP scores (N, 2), on white and on black.
        workers: threads that decode and write beside the models.
        shard, num_shards: this process takes the images whose names hash to ``shard`` modulo ``num_shards``.
    """

    def __init__(
        self,
        layout: RunLayout,
        foreground: Foreground,
        clean: MaskCleaner,
        scorer: Scorer,
        batch_size: int,
        workers: int,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        self._layout = layout
        self._foreground = foreground
        self._clean = clean
        self._scorer = scorer
        self._batch_size = batch_size
        self._workers = workers
        self._shard, self._num_shards = shard, num_shards

    def __call__(self, round_: int, listed: Iterable[tuple[int, list[GeneratedInstance]]]) -> None:
        """Segments the images that ``listed`` yields (see ``follow_round``) as they come."""
        record = _Record(self._layout.cutouts(round_, self._shard, self._num_shards))
        known, _ = read_round_cutouts(self._layout, round_)
        with (
            ThreadPoolExecutor(self._workers) as threads,
            tqdm(desc=f"round {round_}: cut out", unit=" images", dynamic_ncols=True) as progress,
        ):
            try:
                for total, instances in listed:
                    progress.total = max(total // self._num_shards, progress.n)
                    mine = [i for i in instances if self._is_mine(i.file)]
                    todo = [i for i in mine if not self._is_done(known.get(i.file))]
                    progress.update(len(mine) - len(todo))
                    for batch, images in self._decoded(threads, iter(todo)):
                        self._segment(threads, record, batch, images)
                        record.flush_now_and_then()
                        progress.update(len(batch))
                    record.flush_now_and_then()
            finally:
                record.flush()

    def _is_mine(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % self._num_shards == self._shard

    def _is_done(self, cutout: Cutout | None) -> bool:
        if cutout is None or not is_whole(self._layout.segmented(cutout.file)):
            return False
        return cutout.area == 0 or is_whole(self._layout.cutout_image(cutout.file))

    def _decoded(
        self, threads: ThreadPoolExecutor, instances: Iterator[GeneratedInstance]
    ) -> Iterator[tuple[list[GeneratedInstance], list[np.ndarray | None]]]:
        """Batches with their images, decoded ahead in threads."""
        waiting: deque[tuple[list[GeneratedInstance], list[Future[np.ndarray | None]]]] = deque()
        while True:
            while len(waiting) <= _BATCHES_AHEAD and (batch := list(islice(instances, self._batch_size))):
                waiting.append((batch, [threads.submit(self._read, instance.file) for instance in batch]))
            if not waiting:
                return
            batch, images = waiting.popleft()
            yield batch, [image.result() for image in images]

    def _read(self, name: str) -> np.ndarray | None:
        try:
            return read_rgba(self._layout.raw(name))
        except UnreadableImage:
            return None

    def _segment(
        self,
        threads: ThreadPoolExecutor,
        record: "_Record",
        batch: list[GeneratedInstance],
        images: list[np.ndarray | None],
    ) -> None:
        record.unreadable += [i.file for i, image in zip(batch, images, strict=True) if image is None]
        readable = [(i, image) for i, image in zip(batch, images, strict=True) if image is not None]
        if not readable:
            return
        instances, pixels = (list(part) for part in zip(*readable, strict=True))
        alphas, objects = zip(*map(self._clean, self._foreground(pixels)), strict=True)
        scores = self._scorer(pixels, alphas, [instance.category_id for instance in instances])
        for found in zip(instances, pixels, alphas, objects, scores, strict=True):
            record.add(threads.submit(self._write, *found))

    def _write(
        self,
        instance: GeneratedInstance,
        image: np.ndarray,
        alpha: np.ndarray,
        objects: int,
        scores: np.ndarray,
    ) -> Cutout:
        found = outline(alpha)
        if found["area"]:
            cutout = encode_cutout(image, alpha, found["bbox"])
            files.write_bytes(self._layout.cutout_image(instance.file), cutout)
        write_alpha(self._layout.segmented(instance.file), alpha)
        height, width = alpha.shape
        return Cutout(
            file=instance.file,
            category_id=instance.category_id,
            width=width,
            height=height,
            **found,
            objects=objects,
            clip_white=round(float(scores[0]), 4),
            clip_black=round(float(scores[1]), 4),
        )


class _Record:
    """The record file of one shard; rewritten now and then, so that a crash costs seconds of work.

    It never lists a cut-out whose mask is not on disk. Images that did not decode are tried again by every
    call, since stage 1 may have made them again.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        earlier = read_cutouts(path)[0] if files.exists(path) else []
        self._cutouts = {cutout.file: cutout for cutout in earlier}
        self.unreadable: list[str] = []
        self._writing: list[Future[Cutout]] = []
        self._flushed = time.monotonic()

    def add(self, cutout: Future[Cutout]) -> None:
        self._writing.append(cutout)

    def flush_now_and_then(self) -> None:
        if time.monotonic() - self._flushed >= _SECONDS_BETWEEN_RECORDS:
            self.flush()

    def flush(self) -> None:
        for future in self._writing:
            cutout = future.result()
            self._cutouts[cutout.file] = cutout
        self._writing = []
        ordered = [self._cutouts[name] for name in sorted(self._cutouts)]
        write_cutouts(self._path, ordered, sorted(self.unreadable))
        self._flushed = time.monotonic()
