"""One round of stage 2, followed while stage 1 still generates it: decode, cut out, score, write."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from tqdm import tqdm

from diSegmenter.annotate import outline
from diSegmenter.cut_out import CutOut, Cutter
from exchange import files
from exchange.cutouts import encode_cutout, is_whole_cutout
from exchange.errors import UserError
from exchange.images import encode_png, read_record, try_rgba
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, Manifest, is_complete, read_round
from exchange.pool_index import PoolInstance
from exchange.shards import Shard
from exchange.threads import side_by_side
from exchange.waiting import Wait

Listing = tuple[int, list[GeneratedInstance]]


def follow_round(
    layout: RunLayout, round_: int, timeout_s: float, poll_s: float = 2.0, num_shards: int | None = None
) -> Iterator[Listing]:
    """Yields the generated images of a round as the manifests of stage 1 list them, each once.

    ``num_shards``: of stage 1, if the caller knows it; otherwise its manifests say it.

    Yields:
        How many images the round will have, as far as is known, and those listed since the last time.

    Raises:
        UserError: nothing new was listed for ``timeout_s`` seconds and a shard is not complete, or there are others
            than ``num_shards``.
    """
    seen: set[str] = set()
    whole: dict[str, Manifest] = {}
    what, command = f"stage 1 to go on with round {round_}", "mrca generate, for every shard"
    wait = Wait(what, layout.raw(""), command, timeout_s, poll_s)
    while True:
        manifests = read_round(layout, round_, whole)
        if manifests and num_shards not in (None, manifests[0].num_shards):
            raise UserError(
                f"stage 1 draws round {round_} in {manifests[0].num_shards} shards, not in {num_shards}: give that "
                "number as --div, or leave the option out"
            )
        complete = is_complete(manifests)
        new = [i for m in manifests for i in m.instances if i.file not in seen]
        seen.update(instance.file for instance in new)
        yield sum(sum(manifest.asked.values()) for manifest in manifests), new
        if complete:
            return
        if new:
            what = f"stage 1 to go on with round {round_}, of which {len(seen)} images are listed,"
            wait = Wait(what, layout.raw(""), command, timeout_s, poll_s)
        wait.pause()


Measure = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[int]], Sequence[float | None]]
"""Of images, uint8 (H, W, 4), masks, uint8 (H, W) and not all 0, and category ids; None where it cannot tell."""


class RoundSegmenter:
    """Cuts out and scores the images of a round; what an earlier call left is taken as it is.

    An image is done when its mask is on disk: the file carries the instance's record and is written last.

    Args:
        cut_out: gives masks and scores; called from several threads.
        workers: threads, each with a batch of its own: while one has a model, the others decode and write.
        shard: this process takes the images whose names hash to its index, modulo the number of shards.
        measures: what else is measured of what shows an object, by its field in the record (``similarity``,
            ``judge``); called from several threads.
    """

    def __init__(
        self,
        layout: RunLayout,
        cut_out: Cutter,
        batch_size: int,
        workers: int,
        shard: Shard,
        measures: Mapping[str, Measure] = MappingProxyType({}),
    ) -> None:
        self._layout = layout
        self._cut_out = cut_out
        self._batch_size = batch_size
        self._workers = workers
        self._shard = shard
        self._measures = measures

    def __call__(self, round_: int, listed: Iterable[Listing]) -> list[PoolInstance]:
        """Segments the images that ``listed`` yields (see ``follow_round``) as they come.

        Returns the records of all of them that decode, yet without a decision.
        """
        done: list[PoolInstance] = []
        there = files.names(self._layout.segmented(""), self._layout.instance_prefix(round_))
        with (
            side_by_side(self._workers) as threads,
            tqdm(desc=f"round {round_}: cut out", unit=" images", dynamic_ncols=True) as progress,
        ):
            for total, generated in listed:
                progress.total = max(total // self._shard.count, progress.n)
                mine = [image for image in generated if self._is_mine(image.file)]
                found = []
                for instance in threads.map(lambda image: self._earlier(image.file, there), mine):
                    found.append(instance)
                    progress.update(instance is not None)
                done += [instance for instance in found if instance is not None]
                todo = [image for image, instance in zip(mine, found, strict=True) if instance is None]
                batches = [todo[at : at + self._batch_size] for at in range(0, len(todo), self._batch_size)]
                segmented = threads.map(functools.partial(self._segment, round_), batches)
                for batch, instances in zip(batches, segmented, strict=True):
                    done += instances
                    progress.update(len(batch))
        return done

    def _is_mine(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % self._shard.count == self._shard.index

    def _earlier(self, name: str, there: Collection[str]) -> PoolInstance | None:
        """What an earlier call made of an image; ``there``: the masks that it left."""
        return read_cut_out(self._layout, name) if name in there else None

    def _segment(self, round_: int, batch: Sequence[GeneratedInstance]) -> list[PoolInstance]:
        """Decodes, cuts out, scores and writes a batch; other threads do the same with others meanwhile."""
        decoded = [(generated, try_rgba(self._layout.raw(generated.file))) for generated in batch]
        readable = [(generated, image) for generated, image in decoded if image is not None]
        if not readable:
            return []
        records, images = zip(*readable, strict=True)
        category_ids = [generated.category_id for generated in records]
        found = self._cut_out(images, category_ids)
        measured: list[dict[str, float | None]] = [{} for _ in found]
        showing = [place for place, cut_out in enumerate(found) if cut_out.alpha.any()]
        for name, measure in self._measures.items() if showing else ():
            looked_at = zip(*((images[i], found[i].alpha, category_ids[i]) for i in showing), strict=True)
            for place, value in zip(showing, measure(*looked_at), strict=True):
                measured[place][name] = value
        return [self._write(round_, *each) for each in zip(records, images, found, measured, strict=True)]

    def _write(
        self,
        round_: int,
        generated: GeneratedInstance,
        image: np.ndarray,
        found: CutOut,
        measured: Mapping[str, float | None],
    ) -> PoolInstance:
        alpha = found.alpha
        instance = PoolInstance(
            file=generated.file,
            round=round_,
            category_id=generated.category_id,
            width=alpha.shape[1],
            height=alpha.shape[0],
            **outline(alpha),
            objects=found.objects,
            clip_white=round(found.scores[0], 4),
            clip_black=round(found.scores[1], 4),
            reason="",
            seed=generated.seed,
            model=generated.model,
            prompt=generated.prompt,
            cutout=self._layout.cutout_name(generated.file),
            foreground=found.foreground,
            **{name: None if value is None else round(value, 4) for name, value in measured.items()},
        )
        if instance.area:
            cutout = encode_cutout(image, alpha, instance.bbox)
            files.write_bytes(self._layout.cutout(instance.file), cutout, durable=False)
        mask = encode_png(alpha, vars(instance))
        files.write_bytes(self._layout.segmented(instance.file), mask, durable=False)
        return instance


def read_cut_out(layout: RunLayout, name: str) -> PoolInstance | None:
    """The record of an image that was cut out; None if it was not, or mask or cut-out are not whole."""
    instance = read_record(PoolInstance, layout.segmented(name))
    if instance is None or instance.file != name:
        return None
    *_, width, height = instance.bbox
    is_there = not instance.area or is_whole_cutout(layout.cutout(name), (height, width))
    return instance if is_there else None
