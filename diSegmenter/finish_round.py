"""The end of a round: decides what stays and writes the pool that training reads."""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diSegmenter.filter import InstanceFilter
from diSegmenter.pool.annotation_file import write_categories, write_lvis
from diSegmenter.pool.drop import dropped_by_hand, without
from diSegmenter.segment_round import read_cut_out
from exchange import files
from exchange.errors import UserError
from exchange.images import try_rgba
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.pool_index import PoolIndex, PoolInstance, write_index
from exchange.threads import READERS, side_by_side
from exchange.typed import from_record

MAX_UNREADABLE_SHARE = 0.05
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedRound:
    """What a round brought: its instances with their decisions, and the images that do not decode."""

    round: int
    filter: InstanceFilter
    instances: list[PoolInstance]
    unreadable: list[str]

    @property
    def kept(self) -> list[PoolInstance]:
        return [instance for instance in self.instances if not instance.reason]


def finished_rounds(layout: RunLayout, rounds: Iterable[int]) -> list[int]:
    """Those of ``rounds`` whose pool is there, with every cut-out that it lists; a folder is listed once for all.

    Masks are not asked for: training does without them, and pruning (SEGMENTER.KEEP_RAW) removes them.
    """
    names = functools.cache(functools.partial(_names, layout))
    finished = []
    for round_ in rounds:
        if not files.exists(layout.annotations_done(round_)):
            continue
        try:
            index = PoolIndex(layout, [round_])
            next(iter(index), None)  # what opens the outlines, too
            cutouts = index.column("cutout").tolist()
        except UserError as error:
            _log.warning("round %d has its marker but no good index, which is made again: %s", round_, error)
            continue
        if not _lost(cutouts, names):
            finished.append(round_)
    return finished


def judge_round(
    layout: RunLayout, round_: int, cut_out: Iterable[PoolInstance], instance_filter: InstanceFilter
) -> JudgedRound | None:
    """Decides about every image of a round that stage 1 has completed.

    Args:
        cut_out: the instances that the caller knows; what other processes cut out is read from disk.

    Returns:
        None if images are left that other processes of stage 2 have yet to cut out.

    Raises:
        UserError: more than 5 % of the images do not decode.
    """
    known = {instance.file: instance for instance in cut_out}
    instances, unreadable, left = [], [], 0
    names = sorted({i.file for manifest in read_round(layout, round_) for i in manifest.instances})
    with side_by_side(READERS) as threads:
        found = threads.map(lambda name: known.get(name) or read_cut_out(layout, name), names)
    for name, instance in zip(names, found, strict=True):
        if instance is not None:
            instances.append(instance)
        elif try_rgba(layout.raw(name)) is None:
            unreadable.append(name)
        else:
            left += 1
    if left:
        _log.info("round %d: %d images are left to other processes of stage 2", round_, left)
        return None
    _check_readable(round_, unreadable, len(instances))
    return JudgedRound(round_, instance_filter, _judged(layout, instance_filter, instances), unreadable)


def judge_again(layout: RunLayout, round_: int, instance_filter: InstanceFilter) -> JudgedRound:
    """Decides about a finished round by what its index has on record."""
    on_record = recorded_round(layout, round_, instance_filter)
    return dataclasses.replace(on_record, instances=_judged(layout, instance_filter, on_record.instances))


def recorded_round(layout: RunLayout, round_: int, instance_filter: InstanceFilter) -> JudgedRound:
    """A finished round as its index has it, which was judged by ``instance_filter``."""
    unreadable = files.read_json(layout.verdicts(round_))["unreadable"]
    return JudgedRound(
        round_, instance_filter, list(PoolIndex(layout, [round_], dropped_too=True)), unreadable
    )


def _judged(
    layout: RunLayout, instance_filter: InstanceFilter, instances: Iterable[PoolInstance]
) -> list[PoolInstance]:
    return without(instance_filter.judge(instances), dropped_by_hand(layout))


def read_filter(layout: RunLayout, round_: int) -> InstanceFilter | None:
    """What a round was judged by, None where nothing says it, as in a pool that was brought in.

    Raises UserError where its record is damaged.
    """
    path = layout.verdicts(round_)
    if not files.exists(path):
        return None
    try:
        return from_record(InstanceFilter, files.read_json(path)["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not say what was kept ({error}): run stage 2 with --refilter"
        ) from error


def write_verdicts(layout: RunLayout, judged: JudgedRound) -> None:
    """Writes down which instances of a round are kept, and why the others are not."""
    scores = ("clip_white", "clip_black", "similarity", "judge")
    shown = ("file", "category_id", "reason", *scores, "objects", "area")
    content = {
        "format": 1,
        "round": judged.round,
        "settings": dataclasses.asdict(judged.filter),
        "unreadable": judged.unreadable,
        "instances": [
            {"kept": not instance.reason, **{name: getattr(instance, name) for name in shown}}
            for instance in judged.instances
        ],
    }
    files.write_json(layout.verdicts(judged.round), content)


def write_pool(
    layout: RunLayout,
    judged: JudgedRound,
    categories: list[dict[str, Any]],
    pool_rounds: Sequence[int],
    annotation_limit: int,
) -> None:
    """Writes decisions, index, categories, annotations and marker of a round, in this order.

    Args:
        pool_rounds: the rounds that the pool of this round consists of: 0 … ``round``, or ``round`` alone.
        annotation_limit: ``rdNN.json``, which lists all of the pool, is written beside the index where the pool has
            so many instances at most.

    Raises:
        UserError: an earlier round of the pool is not finished, or a kept cut-out is gone.
    """
    round_ = judged.round
    for earlier in pool_rounds:
        if earlier != round_ and not files.exists(layout.annotations_done(earlier)):
            raise UserError(
                f"the pool of round {round_} builds on round {earlier}, which stage 2 has not finished: "
                f"start with --st-rd {earlier}, or set SEGMENTER.LATEST_ROUND_ONLY True"
            )
    lost = _lost([instance.cutout for instance in judged.kept], functools.partial(_names, layout))
    if lost:
        raise UserError(
            f"{len(lost)} cut-outs of round {round_} are gone, {lost[0]} for one: remove "
            f"{layout.annotations_done(round_)} and run mrca generate and mrca segment without --refilter, "
            "which make them again, then with it"
        )
    files.flush_all()  # masks and cut-outs, which were not flushed one by one
    write_verdicts(layout, judged)
    write_index(layout, round_, judged.instances)
    write_categories(layout, categories)
    _export(layout, round_, categories, pool_rounds, annotation_limit)
    files.write_done(layout.annotations_done(round_))
    _warn_of_emptied(judged, categories)
    _log.info("round %d: kept %d of %d instances", round_, len(judged.kept), len(judged.instances))


def _export(
    layout: RunLayout,
    round_: int,
    categories: list[dict[str, Any]],
    pool_rounds: Sequence[int],
    limit: int,
) -> None:
    """Writes the annotation file of a round while the pool is small, so that no round pays for all before it."""
    path = layout.annotations(round_)
    kept = 0
    for pool_round in reversed(pool_rounds):
        kept += len(PoolIndex(layout, [pool_round]))
        if kept > limit:  # the rounds before are not even opened
            break
    else:
        write_lvis(path, layout, pool_rounds, categories)
        return
    files.remove(path)  # of an earlier call, which judged otherwise
    _log.info(
        "%s is left out, since the pool has more than %d instances (SEGMENTER.ANNOTATION_FILE_LIMIT): mrca pool export "
        "%s OUT --to annotations writes it",
        path,
        limit,
        layout.root,
    )


def _warn_of_emptied(judged: JudgedRound, categories: list[dict[str, Any]]) -> None:
    """Names the classes of which the filter leaves nothing, and why."""
    emptied = {i.category_id for i in judged.instances} - {i.category_id for i in judged.kept}
    if emptied:
        names = [str(category["name"]) for category in categories if category["id"] in emptied]
        reasons = Counter(i.reason for i in judged.instances if i.category_id in emptied)
        _log.warning(
            "round %d: nothing is kept of %d classes (%s); dropped for %s: lower that bound (of CLIP scores, "
            "SEGMENTER.CLIP_TOLERANCE keeps the best of each class)",
            judged.round,
            len(emptied),
            _first(names),
            ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()),
        )


def _names(layout: RunLayout, folder: str) -> frozenset[str]:
    return frozenset(files.list_dir(layout.pool(folder)))


def _lost(cutouts: Iterable[str], names: Callable[[str], Collection[str]]) -> list[str]:
    """Those of ``cutouts``, paths below the pool folder, that are not on disk; ``names`` lists one of its folders."""
    folders: dict[str, set[str]] = {}
    for path in cutouts:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    return sorted(
        f"{folder}/{name}" for folder, wanted in folders.items() for name in wanted.difference(names(folder))
    )


def _check_readable(round_: int, unreadable: list[str], num_readable: int) -> None:
    if not unreadable:
        return
    names = _first(unreadable)
    share = len(unreadable) / (len(unreadable) + num_readable)
    if share > MAX_UNREADABLE_SHARE:
        raise UserError(
            f"{len(unreadable)} images ({share:.0%}) of round {round_} do not decode ({names}): remove "
            "them from pool/raw and run stage 1 again, which makes what is missing"
        )
    _log.warning("round %d: %d images do not decode and are left out: %s", round_, len(unreadable), names)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
