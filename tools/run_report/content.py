"""What the page of a run tells, read from its folder alone: rounds, classes, curves, settings."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from diSegmenter.finish_round import read_filter
from diSegmenter.pool.quality import PoolQuality, Quality
from exchange import files
from exchange.annotations import frequency
from exchange.config import config_of_text, flatten
from exchange.errors import UserError
from exchange.feedback import Feedback, read_feedback
from exchange.layout import RunLayout
from exchange.manifest import Manifest, read_round
from exchange.pool_index import PoolIndex
from exchange.seconds import read_seconds
from tools.run_report.confusions import TakenFor, read_confusions
from tools.run_report.selection import read_selections
from tools.run_report.settings import read_settings

# In the order of a round.
_WORKS = (
    "waiting (stage 1)",
    "drawing",
    "waiting (stage 2)",
    "cutting out",
    "filtering",
    "waiting (stage 3)",
    "training",
    "evaluating",
)
_SHOWN = 8  # classes that stand out


@dataclass
class Category:
    """A class of a run. APs are mask APs in percent, by round (-1: the starting weights), None where unknown.

    Attributes:
        group: r, c or f as in LVIS; empty where the run does not say it.
        training: annotated instances; None where the run does not say it.
        reasons: how many of its instances were dropped for which reason.
        drift: how far its classifier row moved in the last round that says so.
        taken_for: validation objects by what they were taken for, see ``read_confusions``.
        pasted, refused: how often an instance was pasted where a selection decided, and how often that refused.
        quality: of its instances of all rounds; None where stage 2 has finished none.
    """

    id: int
    name: str
    group: str = ""
    training: int | None = None
    asked: int = 0
    made: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    ap: dict[int, float | None] = field(default_factory=dict)
    drift: float | None = None
    taken_for: TakenFor = field(default_factory=dict)
    pasted: int = 0
    refused: int = 0
    quality: Quality | None = None

    @property
    def refused_share(self) -> float | None:
        """Percent of what was pasted of it that was not learnt from; None where nothing was decided."""
        return 100 * self.refused / self.pasted if self.pasted else None

    @property
    def known(self) -> list[float]:
        """Its APs that are known, from the first to the last."""
        return [ap for ap in self.ap.values() if ap is not None]

    @property
    def change(self) -> float | None:
        """Its last AP less its first."""
        return self.known[-1] - self.known[0] if len(self.known) > 1 else None


class Categories(dict[int, Category]):
    """Classes by id; what nothing describes is called by its id."""

    def __missing__(self, id_: int) -> Category:
        return self.setdefault(id_, Category(id_, str(id_)))


@dataclass(frozen=True)
class Round:
    """A round, as far as it has come: ``pool`` is None before stage 2 is done, ``feedback`` before
    stage 3; ``kept_is``: what stage 2 kept, in words."""

    number: int
    manifests: list[Manifest]
    pool: PoolIndex | None
    kept_is: str
    feedback: Feedback | None

    @property
    def asked(self) -> int:
        return sum(sum(manifest.asked.values()) for manifest in self.manifests)

    @property
    def made(self) -> int:
        return sum(len(manifest.instances) for manifest in self.manifests)

    @property
    def kept(self) -> int | None:
        return None if self.pool is None else int((self.pool.column("reason") == "").sum())

    @property
    def seconds(self) -> float:
        """That its shards took to draw, added up."""
        return math.fsum(manifest.seconds for manifest in self.manifests)


class RunContent:
    """A run as its folder tells of it.

    Attributes:
        start: the feedback of the starting weights.
        control: that of ``RUN/control``, a run without generated data beside it.
        metrics: the lines of ``train/metrics.json``.
        seconds: by round and work, of all processes added up.
        selections: what a gradient selection did, in the rounds that have one.
        quality: of the pool of the rounds that stage 2 has finished; None where it has finished none.

    Raises UserError where the folder holds no run, or a file that is read is damaged.
    """

    def __init__(self, layout: RunLayout) -> None:
        self.layout = layout
        self.settings, self.versions = read_settings(layout)
        self.start = _feedback(layout.feedback_history(-1))
        self.rounds = _rounds(layout)
        self.selections = read_selections(layout, [round_.number for round_ in self.rounds])
        done = [round_.number for round_ in self.rounds if round_.pool is not None]
        self.quality = PoolQuality(layout, done) if done else None
        control = RunLayout(files.join(layout.root, "control"))
        self.control = _feedback(control.feedback_file)
        self.metrics, self.control_metrics = _metrics(layout), _metrics(control)
        self.seconds = {r.number: {"drawing": r.seconds} for r in self.rounds}
        for round_, of_round in read_seconds(layout).items():
            self.seconds.setdefault(round_, {}).update(of_round)

    @property
    def criterion(self) -> str:
        """What guidance ascends."""
        return str(self.settings.get("GENERATOR.CRITERION", "entropy"))

    @property
    def feedbacks(self) -> list[Feedback]:
        """From the starting weights to the last round."""
        return [f for f in (self.start, *(round_.feedback for round_ in self.rounds)) if f is not None]

    @property
    def times(self) -> tuple[list[str], list[tuple[str, list[float]]], list[float]]:
        """What took time; for each round the minutes of each; for each its share of all."""
        works = [work for work in _WORKS if any(work in of_round for of_round in self.seconds.values())]
        rows = [
            (when(round_), [of_round.get(work, 0.0) / 60 for work in works])
            for round_, of_round in sorted(self.seconds.items())
        ]
        sums = [math.fsum(minutes[column] for _, minutes in rows) for column in range(len(works))]
        return works, rows, [of_work / (math.fsum(sums) or 1.0) for of_work in sums]

    @property
    def changed_settings(self) -> dict[str, tuple[Any, Any]]:
        """Value and default of each setting that is not as in ``exchange/defaults.yaml``."""
        defaults = dict(flatten(config_of_text("{}", "defaults.yaml")))
        return {
            key: (value, defaults.get(key))
            for key, value in sorted(self.settings.items())
            if value != defaults.get(key)
        }

    @cached_property
    def categories(self) -> dict[int, Category]:
        """The classes by id."""
        found = _described(self.layout, self.rounds)
        for round_ in self.rounds:
            for manifest in round_.manifests:
                for id_, asked in manifest.asked.items():
                    found[id_].asked += asked
                for id_, made in Counter(i.category_id for i in manifest.instances).items():
                    found[id_].made += made
            if round_.pool is not None:
                ids, reasons = round_.pool.category_ids.tolist(), round_.pool.column("reason").tolist()
                for id_, reason in zip(ids, reasons, strict=True):
                    category = found[id_]
                    category.kept += not reason
                    category.reasons.update([reason] if reason else [])
        for feedback in self.feedbacks:
            for id_, ap, drift in zip(feedback.categories, feedback.mask_ap, feedback.drift, strict=True):
                category = found[id_]
                category.ap[feedback.round] = ap
                category.drift = category.drift if drift is None else drift
        for id_, taken_for in read_confusions(self.layout, self.feedbacks).items():
            found[id_].taken_for = taken_for
        for selection in self.selections:
            for id_, pasted in selection.pasted.items():
                category = found[id_]
                category.pasted += pasted
                category.refused += selection.refused.get(id_, 0)
        if self.quality is not None:
            for id_, category in found.items():
                category.quality = self.quality.of(category_id=id_)
        return dict(sorted(found.items()))

    def most_refused(self) -> list[Category]:
        """The classes of which the largest share was refused, if any was."""
        refused = [category for category in self.categories.values() if category.refused]
        return sorted(refused, key=lambda category: -(category.refused_share or 0))[:_SHOWN]

    def movers(self) -> tuple[list[Category], list[Category]]:
        """The classes that gained most and that lost most."""
        moved = sorted((c for c in self.categories.values() if c.change), key=lambda c: -(c.change or 0))
        gained = [c for c in moved[:_SHOWN] if (c.change or 0) > 0]
        return gained, [c for c in reversed(moved[-_SHOWN:]) if (c.change or 0) < 0]


def when(round_: float) -> str:
    """The end of a round, in words; -1 is the start."""
    return "start" if round_ < 0 else f"round {round_:g}"


def _feedback(path: str) -> Feedback | None:
    return read_feedback(path) if files.exists(path) else None


def _rounds(layout: RunLayout) -> list[Round]:
    """All rounds of which there is something, from 0 on."""
    rounds: list[Round] = []
    while True:
        number = len(rounds)
        manifests, feedback = read_round(layout, number), _feedback(layout.feedback_history(number))
        done = files.exists(layout.annotations_done(number))
        if not (manifests or feedback or done):
            return rounds
        pool = PoolIndex(layout, [number], dropped_too=True) if done else None
        judged_by = read_filter(layout, number)
        rounds.append(Round(number, manifests, pool, judged_by.in_words() if judged_by else "", feedback))


def _described(layout: RunLayout, rounds: list[Round]) -> Categories:
    """Names and training instances, as stage 1 wrote them down; groups from the records of stage 2."""
    found = Categories()
    for round_ in rounds:
        path = files.join(layout.pictures_dir, f"allocation_rd{round_.number:02}.csv")
        if files.exists(path):
            try:
                for row in csv.DictReader(io.StringIO(files.read_bytes(path).decode())):
                    found[int(row["id"])] = Category(int(row["id"]), row["class"], training=int(row["N"]))
            except (KeyError, ValueError, TypeError, csv.Error) as error:
                raise UserError(f"{path} is no table of an allocation ({error}): remove it") from error
            break
    paths = (layout.pool_categories(), *(layout.annotations(r.number) for r in rounds))
    records = next((path for path in paths if files.exists(path)), None)
    for record in files.read_json(records)["categories"] if records else []:
        category = found.setdefault(record["id"], Category(record["id"], record["name"]))
        images = record.get("image_count")
        category.group = record.get("frequency") or ("" if images is None else frequency(images))
    return found


def _metrics(layout: RunLayout) -> list[dict[str, Any]]:
    path = files.join(layout.train_dir, "metrics.json")
    if not files.exists(path):
        return []
    try:
        return [json.loads(line) for line in files.read_bytes(path).decode().splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a line that is no JSON ({error}): remove that line") from error
