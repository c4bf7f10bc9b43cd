"""The end of a round: decides what stays and writes the pool that training reads."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from diSegmenter.annotate import lvis_file
from diSegmenter.checks import Checks
from exchange import files
from exchange.cutouts import Cutout, Verdicts, read_round_cutouts, write_verdicts
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, read_round
from exchange.pool_index import PoolIndex, PoolInstance, write_index

MAX_UNREADABLE_SHARE = 0.05
_log = logging.getLogger(__name__)


def is_finished(layout: RunLayout, round_: int) -> bool:
    """Whether the pool of a round is there, with every cut-out that it lists."""
    if not files.exists(layout.annotations_done(round_)):
        return False
    try:
        return not _lost(layout, PoolIndex(layout, [round_]))
    except UserError as error:
        _log.warning("round %d has its marker but no good index, which is made again: %s", round_, error)
        return False


def finish_round(
    layout: RunLayout,
    round_: int,
    checks: Checks,
    categories: list[dict[str, Any]],
    pool_rounds: Sequence[int],
    annotation_file: bool = True,
) -> bool:
    """Judges the cut-outs of a round; writes decisions, index, annotations and marker, in this order.

    Args:
        pool_rounds: the rounds that the pool of this round consists of: 0 … ``round_``, or ``round_`` alone.
        annotation_file: whether to write ``rdNN.json``, which lists all of the pool, beside the index.

    Returns:
        False, with nothing written, if other shards of stage 2 still have images of the round to cut out.

    Raises:
        UserError: more than 5 % of the images did not decode, or an earlier round is not finished.
    """
    found, unreadable = read_round_cutouts(layout, round_)
    made = {
        i.file: (i, manifest.model) for manifest in read_round(layout, round_) for i in manifest.instances
    }
    cutouts = {name: cutout for name, cutout in found.items() if name in made}
    missing = made.keys() - cutouts.keys() - set(unreadable)
    if missing:
        _log.info(
            "round %d: %d images are left to other processes of stage 2; the last one to end writes the pool",
            round_,
            len(missing),
        )
        return False
    _check_readable(round_, unreadable, len(cutouts))
    for earlier in pool_rounds:
        if earlier != round_ and not files.exists(layout.annotations_done(earlier)):
            raise UserError(
                f"the pool of round {round_} builds on round {earlier}, which stage 2 has not finished: "
                f"start with --st_rd {earlier}, or set SEGMENTER.LATEST_ROUND_ONLY True"
            )
    reasons = {name: checks.reason(cutout) for name, cutout in cutouts.items()}
    rows = [_row(layout, round_, cutout, reasons[name], *made[name]) for name, cutout in cutouts.items()]
    lost = _lost(layout, (row for row in rows if not row.reason))
    if lost:
        raise UserError(
            f"{len(lost)} cut-outs of round {round_} are gone, {lost[0]} for one: run segmentAndFilter.py "
            "without --refilter, which makes them again from pool/raw"
        )
    write_verdicts(layout, Verdicts(round_, dataclasses.asdict(checks), reasons, unreadable))
    write_index(layout, round_, rows)
    if annotation_file:
        pool = PoolIndex(layout, pool_rounds)
        files.write_json(layout.annotations(round_), lvis_file(pool, categories, round_))
    files.write_done(layout.annotations_done(round_))
    kept = sum(not reason for reason in reasons.values())
    _log.info("round %d: kept %d of %d instances", round_, kept, len(reasons))
    return True


def _lost(layout: RunLayout, instances: Iterable[PoolInstance]) -> list[str]:
    """The files of cut-outs that are not on disk."""
    listed = {instance.cutout for instance in instances}
    folders = {path.rpartition("/")[0] for path in listed}
    present = {f"{folder}/{name}" for folder in folders for name in files.list_dir(layout.pool(folder))}
    return sorted(listed - present)


def _row(
    layout: RunLayout, round_: int, cutout: Cutout, reason: str, made: GeneratedInstance, model: str
) -> PoolInstance:
    return PoolInstance(
        file=cutout.file,
        round=round_,
        category_id=cutout.category_id,
        width=cutout.width,
        height=cutout.height,
        bbox=cutout.bbox,
        area=cutout.area,
        segmentation=cutout.segmentation,
        clip_white=cutout.clip_white,
        clip_black=cutout.clip_black,
        reason=reason,
        seed=made.seed,
        model=model,
        prompt=made.prompt,
        cutout=layout.cutout_image(cutout.file).removeprefix(layout.pool("") + "/"),
    )


def _check_readable(round_: int, unreadable: list[str], num_readable: int) -> None:
    if not unreadable:
        return
    names = ", ".join(unreadable[:10]) + (", …" if len(unreadable) > 10 else "")
    share = len(unreadable) / (len(unreadable) + num_readable)
    if share > MAX_UNREADABLE_SHARE:
        raise UserError(
            f"{len(unreadable)} images ({share:.0%}) of round {round_} do not decode ({names}): remove "
            "them from pool/raw and run stage 1 again, which makes what is missing"
        )
    _log.warning("round %d: %d images do not decode and are left out: %s", round_, len(unreadable), names)
