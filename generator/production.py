"""One shard of a round: draws what is missing of it and writes its manifest."""

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tqdm import tqdm

from exchange import files
from exchange.errors import UserError
from exchange.images import read_record
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.manifest import GeneratedInstance, Manifest, read_manifest, write_manifest
from exchange.shards import Shard
from exchange.threads import READERS, side_by_side
from generator.image_writer import ImageWriter
from generator.plan import PlannedImage, batches_of_shard
from generator.sampling import SampledImage

Draw = Callable[[Sequence[PlannedImage]], list[SampledImage]]
_log = logging.getLogger(__name__)


def produce(
    layout: RunLayout,
    round_: int,
    plan: Sequence[PlannedImage],
    shard: Shard,
    batch_size: int,
    guided: bool,
    begin: Callable[[Sequence[PlannedImage]], Draw],
) -> Manifest:
    """Makes the images of one shard that are not on disk yet; returns the manifest, which it wrote.

    Args:
        plan: all images of the round.
        batch_size: the batches that each model's images are cut into before they are divided among shards. One
            of which an image is missing is drawn whole, so that its pixels are the same as without the
            interruption; only what is missing is written.
        guided: whether the plan's images are guided; images that are not as planned count as missing.
        begin: gets the images to draw and returns what draws a batch; called only if something is missing,
            since it may load models.

    Raises:
        UserError: another process draws this shard, or the disk is full.
    """
    started = time.monotonic()
    batches = batches_of_shard(plan, batch_size, shard)
    images = [image for batch in batches for image in batch]
    asked = dict(Counter(image.category_id for image in images))
    path = layout.manifest(round_, shard.index, shard.count)
    with only_one(layout, f"generate_{shard.index}of{shard.count}"):
        earlier = read_manifest(path) if files.exists(path) else None
        there = files.names(layout.raw(""), layout.instance_prefix(round_))
        drawn = [image for image in images if image.file in there]
        with side_by_side(READERS) as threads:
            read = threads.map(lambda image: read_record(GeneratedInstance, layout.raw(image.file)), drawn)
            told = tqdm(read, f"round {round_}: drawn before", len(drawn), unit="image", delay=2)
            found = zip(drawn, told, strict=True)
            records = {i.file: r for i, r in found if r is not None and _as_planned(r, i, guided)}
        if earlier and earlier.complete and earlier.instances == [records.get(i.file) for i in images]:
            return earlier
        seconds_before = earlier.seconds if earlier else 0.0

        def write() -> Manifest:
            made = [records[image.file] for image in images if image.file in records]
            seconds = round(seconds_before + time.monotonic() - started, 3)
            complete = len(made) == len(images)
            manifest = Manifest(round_, shard.index, shard.count, complete, asked, made, seconds)
            write_manifest(layout, manifest)
            return manifest

        missing = [batch for batch in batches if any(image.file not in records for image in batch)]
        if missing:
            count = len(images) - len(records)
            _log.info("round %d, shard %s: %d of %d images to draw", round_, shard, count, len(images))
            draw = begin([image for batch in missing for image in batch])
            write()  # what is planned, for stage 2 to follow; only now, as what begins may fail
            with tqdm(total=len(images), initial=len(records), desc=f"round {round_}", unit="image") as bar:
                _draw_missing(layout, missing, records, guided, draw, bar)
        return write()


def _draw_missing(
    layout: RunLayout,
    batches: Sequence[Sequence[PlannedImage]],
    records: dict[str, GeneratedInstance],
    guided: bool,
    draw: Draw,
    bar: "tqdm[None]",
) -> None:
    """Draws the batches and writes those of their images that have no record; adds theirs to ``records``."""
    left_out = []
    writer = ImageWriter()
    try:
        with writer:
            for batch in batches:
                for image, made in zip(batch, draw(batch), strict=True):
                    if made.shifts_left_out:
                        left_out.append(image.file)
                    if image.file not in records:
                        record = _record(image, guided, made.criterion_before, made.criterion_after)
                        writer.put(layout.raw(image.file), made.pixels, record)
                        bar.update()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        missing = bar.total - len(records) - len(writer.written)
        raise UserError(
            f"the disk with {layout.root} is full and {missing} images are missing: make room and start "
            "again, only these will be drawn"
        ) from error
    records.update({record.file: record for record in writer.written})
    if left_out:
        names = ", ".join(left_out)
        _log.warning("%d images have a step without guidance (gradient not finite): %s", len(left_out), names)


def _record(
    image: PlannedImage, guided: bool, before: float | None, after: float | None
) -> GeneratedInstance:
    return GeneratedInstance(
        file=image.file,
        category_id=image.category_id,
        instance=image.instance,
        seed=image.seed,
        template=image.template,
        prompt=image.prompt,
        guided=guided,
        model=image.model,
        criterion_before=before,
        criterion_after=after,
    )


def _as_planned(record: GeneratedInstance, image: PlannedImage, guided: bool) -> bool:
    return record == _record(image, guided, record.criterion_before, record.criterion_after)
