"""One round of stage 2: decode, cut out, score, write."""

import dataclasses
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from tqdm import tqdm

from diSegmenter.annotate import outline
from diSegmenter.checks import MaskCleaner
from diSegmenter.follow import Listing
from diSegmenter.images import (
    UnreadableImage,
    encode_cutout,
    is_whole_cutout,
    read_record,
    read_rgba,
    write_alpha,
)
from exchange import files
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance
from exchange.pool_index import PoolInstance
from exchange.typed import from_record

Foreground = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
Scorer = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[int]], np.ndarray]
Batch = list[tuple[GeneratedInstance, str]]

_BATCHES_AHEAD = 2


class RoundSegmenter:
    """Cuts out and scores the images of a round; what an earlier call left is taken as it is.

    An image is done when its mask is on disk: the file carries the instance's record and is written last.

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

    def __call__(self, round_: int, listed: Iterable[Listing]) -> list[PoolInstance]:
        """Segments the images that ``listed`` yields (see ``follow_round``) as they come.

        Returns the records of all of them that decode, yet without a decision.
        """
        done: list[PoolInstance] = []
        writing: deque[Future[PoolInstance]] = deque()
        with (
            ThreadPoolExecutor(self._workers) as threads,
            tqdm(desc=f"round {round_}: cut out", unit=" images", dynamic_ncols=True) as progress,
        ):
            for total, generated in listed:
                progress.total = max(total // self._num_shards, progress.n)
                mine = [item for item in generated if self._is_mine(item[0].file)]
                found = list(threads.map(lambda item: read_cut_out(self._layout, item[0].file), mine))
                done += [instance for instance in found if instance is not None]
                progress.update(sum(instance is not None for instance in found))
                todo = (item for item, instance in zip(mine, found, strict=True) if instance is None)
                for batch, images in self._decoded(threads, todo):
                    writing += self._segment(threads, round_, batch, images)
                    while len(writing) > _BATCHES_AHEAD * self._batch_size:
                        done.append(writing.popleft().result())
                    progress.update(len(batch))
                done += [instance.result() for instance in writing]
                writing.clear()
        return done

    def _is_mine(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % self._num_shards == self._shard

    def _decoded(
        self, threads: ThreadPoolExecutor, todo: Iterator[tuple[GeneratedInstance, str]]
    ) -> Iterator[tuple[Batch, list[np.ndarray | None]]]:
        """Batches with their images, decoded ahead in threads; None for one that does not decode."""
        waiting: deque[tuple[Batch, list[Future[np.ndarray | None]]]] = deque()
        while True:
            while len(waiting) <= _BATCHES_AHEAD and (batch := list(islice(todo, self._batch_size))):
                waiting.append((batch, [threads.submit(self._read, item.file) for item, _ in batch]))
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
        self, threads: ThreadPoolExecutor, round_: int, batch: Batch, images: list[np.ndarray | None]
    ) -> list[Future[PoolInstance]]:
        readable = [(item, image) for item, image in zip(batch, images, strict=True) if image is not None]
        if not readable:
            return []
        items, pixels = (list(part) for part in zip(*readable, strict=True))
        alphas, objects = zip(*map(self._clean, self._foreground(pixels)), strict=True)
        scores = self._scorer(pixels, alphas, [generated.category_id for generated, _ in items])
        found = zip(items, pixels, alphas, objects, scores.tolist(), strict=True)
        return [threads.submit(self._write, round_, *each) for each in found]

    def _write(
        self,
        round_: int,
        item: tuple[GeneratedInstance, str],
        image: np.ndarray,
        alpha: np.ndarray,
        objects: int,
        scores: list[float],
    ) -> PoolInstance:
        generated, model = item
        instance = PoolInstance(
            file=generated.file,
            round=round_,
            category_id=generated.category_id,
            width=alpha.shape[1],
            height=alpha.shape[0],
            **outline(alpha),
            objects=objects,
            clip_white=round(scores[0], 4),
            clip_black=round(scores[1], 4),
            reason="",
            seed=generated.seed,
            model=model,
            prompt=generated.prompt,
            cutout=self._layout.cutout_name(generated.file),
        )
        if instance.area:
            cutout = encode_cutout(image, alpha, instance.bbox)
            files.write_bytes(self._layout.cutout(instance.file), cutout, durable=False)
        write_alpha(self._layout.segmented(instance.file), alpha, dataclasses.asdict(instance))
        return instance


def read_cut_out(layout: RunLayout, name: str) -> PoolInstance | None:
    """The record of an image that was cut out; None if it was not, or mask or cut-out are not whole."""
    try:
        instance = from_record(PoolInstance, read_record(layout.segmented(name)))
    except ValueError:
        return None
    whole = not instance.area or is_whole_cutout(layout.cutout(name))
    return instance if whole and instance.file == name else None
