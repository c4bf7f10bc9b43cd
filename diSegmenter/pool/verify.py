"""Finds what is wrong with a pool, and says what to do about it."""

import itertools
import re
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from tqdm import tqdm

from exchange import files
from exchange.annotations import read_annotations
from exchange.cutouts import has_its_halves
from exchange.errors import UserError
from exchange.images import BadImage, decode_rgba
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance
from exchange.threads import side_by_side

_STRETCH, _PIECE = 512, 32  # instances read from the index, and given to a thread, at once
_WORKERS = 4  # threads
_MARKER = re.compile(r"rd(\d{2,})\.done")


@dataclass(frozen=True)
class Problem:
    """What is wrong with which file, and what mends it."""

    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}"


def verify(layout: RunLayout, category_ids: Set[int]) -> Iterator[Problem]:
    """Yields the problems of a pool, round by round, those of a round before those of its instances."""
    rounds = {int(match[1]) for match in files.matches(layout.pool("annotations"), _MARKER)}
    hashes: dict[bytes, str] = {}
    for round_ in sorted(rounds | set(layout.pool_rounds())):
        again = f"run mrca segment --st-rd {round_} again"
        try:
            index = PoolIndex(layout, [round_])
        except UserError as error:
            yield Problem(layout.pool_index(round_), str(error), again)
            continue
        yield from _of_round(layout, round_, index, again)
        with (
            side_by_side(_WORKERS) as threads,
            tqdm(total=len(index), desc=f"verify round {round_}", unit=" instances") as progress,
        ):
            for row, (digest, problems) in enumerate(_map(threads, index, category_ids, again)):
                yield from problems
                first = hashes.setdefault(digest, index.name(row)) if digest else None
                if first is not None and first != index.name(row):
                    remedy = "drop one with mrca pool prune --duplicates"
                    yield Problem(index.name(row), f"the same picture as {first}", remedy)
                progress.update()


def _map(
    threads: ThreadPoolExecutor, index: PoolIndex, category_ids: Set[int], again: str
) -> Iterator[tuple[bytes | None, list[Problem]]]:
    """What :func:`_of_instance` finds, in order, a stretch of rows at a time, several of them in a thread at once."""

    def check(some: list[tuple[int, PoolInstance]]) -> list[tuple[bytes | None, list[Problem]]]:
        return [_of_instance(index, row, instance, category_ids, again) for row, instance in some]

    rows = enumerate(index)
    while stretch := list(itertools.islice(rows, _STRETCH)):
        pieces = [stretch[at : at + _PIECE] for at in range(0, len(stretch), _PIECE)]
        for found in threads.map(check, pieces):
            yield from found


def _of_round(layout: RunLayout, round_: int, index: PoolIndex, again: str) -> Iterator[Problem]:
    if not files.exists(layout.annotations_done(round_)):
        yield Problem(layout.pool_index(round_), "the round has no marker, so training waits for it", again)
    path = layout.annotations(round_)
    if not files.exists(path):
        return
    remedy = "remove it: training reads the index, and mrca pool export --to annotations writes one anew"
    try:
        listed = set(read_annotations(path).file_names())
    except UserError as error:
        yield Problem(path, str(error), remedy)
        return
    kept = set(index.column("file").tolist())
    dropped = set(PoolIndex(layout, [round_], dropped_too=True).column("file").tolist()) - kept
    for verb, wrong in (("lacks", kept - listed), ("lists dropped", dropped & listed)):
        if wrong:
            yield Problem(path, f"{verb} {len(wrong)} instances of the index, such as {min(wrong)}", remedy)


def _of_instance(
    index: PoolIndex, row: int, instance: PoolInstance, category_ids: Set[int], again: str
) -> tuple[bytes | None, list[Problem]]:
    """The hash of the cut-out's file, if there is one, and what is wrong with the instance."""
    problems: list[Problem] = []
    if instance.category_id not in category_ids:
        what = f"category {instance.category_id} is none of the data set's"
        problems.append(Problem(instance.file, what, "import the pool with the annotations of its data set"))
    try:
        path = index.name(row)
        data = index.read(row)
    except UserError as error:
        return None, [*problems, Problem(instance.file, str(error), again)]
    try:
        pixels = decode_rgba(data, path)  # with its bounds, which a pool from elsewhere needs
    except BadImage as error:
        return None, [*problems, Problem(path, str(error), f"remove it and {again}")]
    alpha = pixels[..., 3] > 0
    *_, width, height = instance.bbox  # inside of the image, as the index is read
    tight = alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()
    if not tight or alpha.shape != (height, width) or alpha.sum() != instance.area:
        what = f"box {instance.bbox} and area {instance.area} are not those of the mask"
        problems.append(Problem(path, what, f"remove it and {again}"))
    if not has_its_halves(data, pixels):
        what = "what is behind the object is not its halves, which training would paste"
        problems.append(Problem(path, what, f"remove it and {again}"))
    return sha256(data).digest()[:16], problems
