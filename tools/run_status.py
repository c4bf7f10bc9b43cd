"""How far a run is, from the names and dates of its files and the ends of two or three of them."""

from __future__ import annotations

import json
import re
import statistics
import time
from dataclasses import dataclass, field
from datetime import timedelta

import yaml
from fvcore.common.config import CfgNode

from exchange import files
from exchange.config import config_of_text
from exchange.errors import UserError
from exchange.feedback import source_round
from exchange.files import Entry
from exchange.layout import RunLayout
from exchange.manifest import is_complete, read_manifest
from exchange.run import num_rounds, round_iterations
from tools.run_report.settings import read_settings

_STOPPED = " exchange.errors: Stopped: "  # the last line of a process that a signal ended
_TAIL = 8192  # bytes; a line of metrics.json takes one
_FEEDBACK, _DONE = re.compile(r"rd(\d+)\.json"), re.compile(r"rd(\d+)\.done")


@dataclass
class Status:
    """What can be said of a run at one moment.

    Attributes:
        state: finished, running, waiting or failed.
        doing: what each chain does or waits for, a sentence each.
        left: seconds that the rest of the run will take; None where nothing tells it yet.
        quiet: seconds since the last file was written.
        skipped: what was left out, and what failed.
    """

    state: str
    rounds_done: int
    rounds: int
    doing: list[str] = field(default_factory=list)
    left: float | None = None
    quiet: float = 0.0
    skipped: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a person to read."""
        lines = [
            f"{self.state}: {self.rounds_done} of {self.rounds} rounds are done",
            *self.doing,
            *self.skipped,
        ]
        if self.state != "finished":
            left = "not known before a round is done" if self.left is None else f"about {_span(self.left)}"
            lines += [f"left: {left}", f"last sign of life: {_span(self.quiet)} ago"]
        return lines


@dataclass(frozen=True)
class _Seen:
    """The dates that tell how far a run is: of the feedback and of the pool of each round."""

    feedback: dict[int, Entry]
    pools: dict[int, Entry]
    train: dict[str, Entry]
    logs: dict[str, Entry]

    @classmethod
    def of(cls, layout: RunLayout) -> _Seen:
        feedback = files.entries(files.join(layout.root, "feedback"))
        by_round = {int(m[1]): e for n, e in feedback.items() if (m := _FEEDBACK.fullmatch(n))}
        if "initial.json" in feedback:
            by_round[-1] = feedback["initial.json"]
        marks = files.entries(layout.pool("annotations"), "rd")
        pools = {int(m[1]): e for n, e in marks.items() if (m := _DONE.fullmatch(n))}
        return cls(by_round, pools, files.entries(layout.train_dir), files.entries(layout.logs_dir))


def look(layout: RunLayout, now: float, quiet_s: float) -> Status:
    """The status of a run at the time ``now`` (seconds since 1970), waiting after ``quiet_s`` without a new file.

    Raises UserError where there is no run, or its run.yaml is damaged.
    """
    settings = read_settings(layout)[0]
    cfg = config_of_text(yaml.safe_dump(settings), layout.settings_file)
    rounds = num_rounds(cfg) if cfg.INPUT.INST_POOL_FEED else 1
    seen = _Seen.of(layout)
    round_ = _first_missing(seen.feedback)
    status = Status("finished", min(round_, rounds), rounds, skipped=_skipped(layout, seen.pools))
    if round_ >= rounds:
        return status
    metrics = _last_metrics(layout) if "metrics.json" in seen.train else {}
    written = [*seen.feedback.values(), *seen.pools.values(), *seen.train.values(), *seen.logs.values()]
    if cfg.INPUT.INST_POOL_FEED:
        making, of_pool = _pool(layout, cfg, seen, rounds)
        status.doing += making
        written += of_pool
    status.doing.append(_training(cfg, seen, round_, metrics))
    status.quiet = now - max((entry.modified for entry in written), default=now)
    status.left = _left(cfg, seen, round_, rounds, metrics, now)
    ends = _last_lines(layout, seen.logs)
    failures = [f"{name}: {line}" for name, line in ends.items() if " ERROR " in line]
    stopped = [
        f"{name} was stopped: the same command goes on" for name, line in ends.items() if _STOPPED in line
    ]
    status.skipped += failures + stopped
    is_at_work = status.quiet <= quiet_s and not stopped
    status.state = "failed" if failures else "running" if is_at_work else "waiting"
    return status


def _first_missing(rounds: dict[int, Entry]) -> int:
    round_ = 0
    while round_ in rounds:
        round_ += 1
    return round_


def _pool(layout: RunLayout, cfg: CfgNode, seen: _Seen, rounds: int) -> tuple[list[str], list[Entry]]:
    """What the first two stages do, and the files that they have made of the round they are at."""
    round_ = _first_missing(seen.pools)
    if round_ >= rounds:
        return [], []
    folder = layout.pool("raw")
    manifests = [read_manifest(path) for path in layout.manifests(round_)]
    drawn = files.entries(folder, layout.instance_prefix(round_))
    cut_out = files.entries(layout.pool("segmented"), layout.instance_prefix(round_))
    written = [*drawn.values(), *cut_out.values()]
    asked = sum(sum(manifest.asked.values()) for manifest in manifests)
    if is_complete(manifests):
        return [f"round {round_}, stage 2: {len(cut_out)} of {asked} images are cut out"], written
    source = source_round(round_, cfg.FEEDBACK.STALENESS)
    if not manifests and round_ and source not in seen.feedback:
        what = "the evaluation of the starting weights" if source < 0 else f"the feedback of round {source}"
        return [f"round {round_}, stage 1: waits for {what}{_since(seen.pools.get(round_ - 1))}"], written
    return [f"round {round_}, stage 1: {len(drawn)} of {asked or '?'} images are drawn"], written


def _training(cfg: CfgNode, seen: _Seen, round_: int, metrics: dict[str, float]) -> str:
    length, last = round_iterations(cfg), cfg.SOLVER.MAX_ITER
    start, end = round_ * length, min((round_ + 1) * length, last)
    iteration = int(metrics.get("iteration", 0))
    if iteration >= end:
        return f"round {round_}, stage 3: evaluates"
    needs_pool = cfg.INPUT.USE_COPY_METHOD != "none" and cfg.INPUT.INST_POOL_FEED
    if needs_pool and round_ not in seen.pools:
        return f"round {round_}, stage 3: waits for the pool of round {round_}{_since(seen.feedback.get(round_ - 1))}"
    here = f"{max(iteration - start, 0)} of {end - start} iterations"
    return f"round {round_}, stage 3: {here}, {iteration} of {last} in all"


def _since(entry: Entry | None) -> str:
    return "" if entry is None else time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(entry.modified))


def _left(
    cfg: CfgNode, seen: _Seen, round_: int, rounds: int, metrics: dict[str, float], now: float
) -> float | None:
    """As many rounds more as are missing, each as long as the median of those that are done; never less than the
    iterations that are missing take."""
    iterations = cfg.SOLVER.MAX_ITER - metrics.get("iteration", 0)
    training = iterations * metrics["time"] if "time" in metrics else None
    ends = [seen.feedback[r].modified for r in range(-1, round_) if r in seen.feedback]
    lasted = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    if not lasted:
        return training
    by_rounds = statistics.median(lasted) * (rounds - round_) - (now - ends[-1])
    return max(by_rounds, training or 0.0)


def _last_metrics(layout: RunLayout) -> dict[str, float]:
    end = files.tail(files.join(layout.train_dir, "metrics.json"), _TAIL).decode(errors="replace")
    try:
        last = json.loads(end.splitlines()[-1])
        return {name: float(last[name]) for name in ("iteration", "time")}
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return {}  # it has no whole line yet


def _skipped(layout: RunLayout, pools: dict[int, Entry]) -> list[str]:
    """What the last pool left out."""
    round_ = max(pools, default=None)
    if round_ is None or not files.exists(layout.verdicts(round_)):
        return []
    verdicts = files.read_json(layout.verdicts(round_))
    try:
        instances, unreadable = verdicts["instances"], len(verdicts["unreadable"])
        kept = sum(instance["kept"] for instance in instances)
    except (KeyError, TypeError) as error:
        raise UserError(f"{layout.verdicts(round_)} does not say what was kept: run stage 2 again") from error
    more = f", {unreadable} images do not decode" if unreadable else ""
    return [f"round {round_}: {kept} of {len(instances)} instances kept{more}"]


def _last_lines(layout: RunLayout, logs: dict[str, Entry]) -> dict[str, str]:
    """How the log of each stage ends; one that is started again writes on."""
    ends = {}
    for name in sorted(logs):
        lines = files.tail(files.join(layout.logs_dir, name), _TAIL).decode(errors="replace").splitlines()
        if lines:
            ends[name] = lines[-1]
    return ends


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(max(seconds, 0))))
