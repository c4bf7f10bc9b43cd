"""Drives the three stages through several rounds, each stage as a process of its own.

Two chains run side by side: one makes the pools (stages 1 and 2), the other trains (stage 3). Each waits for
the other's files, so with staleness 1 a round is generated while the one before trains, and with staleness 0
they take turns. A configuration without a pool of its own (INPUT.INST_POOL_FEED) has no rounds: it only trains, to
SOLVER.MAX_ITER. A run that was stopped goes on where it was when it is started again.
"""

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exchange import files, stopping
from exchange.command_line import make_parser
from exchange.config import (
    REPOSITORY,
    add_config_arguments,
    below_working_directory,
    find_config,
    load_config,
)
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout
from exchange.run import num_rounds, run_layout
from tools.stage_output import RunProgress, Terminal

_STAGES = {
    "generate.py": "generate",
    "segmentAndFilter.py": "segment",
    "launch.sh": "train",
    "visualize.py": "visualize",
    "report.py": "report",
}


@dataclass(frozen=True)
class Interpreters:
    """The Python of each stage's environment."""

    generator: str = sys.executable
    segmenter: str = sys.executable
    trainer: str = sys.executable


class Chain(threading.Thread):
    """Commands one after the other, a step at a time; the commands of a step run side by side.

    ``terminal`` shows what they write; ``after_step`` is called when a step is done.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[Sequence[list[str]]],
        environment: dict[str, str],
        terminal: Terminal | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._terminal, self._after_step = terminal or Terminal(sys.stderr), after_step
        self.failed: list[str] | None = None
        self._steps, self._environment = steps, environment
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped, self._lock = False, threading.Lock()

    def run(self) -> None:
        for step in self._steps:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            with self._lock:
                if self._stopped:
                    return
                self._running = [stopping.start(command, env=self._environment, **pipes) for command in step]
            shown = [self._show(*each) for each in zip(step, self._running, strict=True)]
            codes = [stopping.wait(process) for process in self._running]
            for thread in shown:
                thread.join(timeout=5)  # no longer, should something that outlives its stage hold the pipe
            if any(codes) and not self._stopped:
                self.failed = step[next(index for index, code in enumerate(codes) if code)]
                self.stop()
            self._after_step()

    def _show(self, command: list[str], process: "subprocess.Popen[bytes]") -> threading.Thread:
        """Shows what a process writes, with its stage in front, and its number if there are several."""
        stage = next((_STAGES[name] for part in command if (name := Path(part).name) in _STAGES), self.name)
        if len(self._running) > 1:
            stage += f" {self._running.index(process)}"
        thread = threading.Thread(target=self._terminal.follow, args=(stage, process.stdout), daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Asks what runs now to end; nothing further is started."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                if process.poll() is None:
                    process.terminate()


def pool_steps(
    config: list[str], rounds: int, gpus: int, python: Interpreters, done: int = 0
) -> list[list[list[str]]]:
    """Stages 1 and 2 of every round, the former as one process a GPU; one call of each for all that are ``done``."""
    steps = []
    calls = [(0, done)] if done else []
    calls += [(round_, 1) for round_ in range(done, rounds)]
    draw, cut_out = (
        str(REPOSITORY / name) for name in ("generator/generate.py", "diSegmenter/segmentAndFilter.py")
    )
    for first, number in calls:
        this = ["--st-rd", str(first), "--num-rounds", str(number), *config]
        shards = [["--gpu", str(gpu), "--div", str(gpu), "--num-div", str(gpus)] for gpu in range(gpus)]
        steps.append([[python.generator, draw, *shard, *this] for shard in shards])
        steps.append([[python.segmenter, cut_out, *this]])
    return steps


def training_steps(
    config: list[str], rounds: int, gpus: int, layout: RunLayout, python: Interpreters, done: int = 0
) -> list[list[list[str]]]:
    """Stage 3 of every round, and after each the page of the run, for which its training images are drawn.

    Not of those that are ``done``, since a call trains the next round that is not, whichever; but the last of them
    may lack its page.
    """
    train = ["bash", str(REPOSITORY / "launch.sh"), "--num-gpus", str(gpus), *config]
    draw, report = (str(REPOSITORY / "tools" / name) for name in ("visualize.py", "report.py"))
    steps = []
    for round_ in range(max(done - 1, 0), rounds):
        picture = files.join(layout.pictures_dir, f"training_rd{round_:02}.png")
        show = [python.trainer, draw, "data", "--round", str(round_), "--out", picture, *config]
        steps += [[train]] if round_ >= done else []
        steps += [[_if_it_can(show)], [_if_it_can([sys.executable, report, layout.root])]]
    return steps


def _done(paths: Callable[[int], str], rounds: int) -> int:
    """How many rounds, from the first on, have their file of ``paths``, up to ``rounds``."""
    return next((round_ for round_ in range(rounds) if not files.exists(paths(round_))), rounds)


def _if_it_can(command: list[str]) -> list[str]:
    """A command that says what went wrong and does not end the run for it: what it makes is only looked at."""
    return ["bash", "-c", '"$@" || true', "bash", *command]


def run_chains(chains: Sequence[Chain]) -> None:
    """Runs them side by side; raises UserError naming the command that failed, after ending the others."""
    for chain in chains:
        chain.start()
    try:
        while any(chain.is_alive() for chain in chains):
            for chain in chains:
                chain.join(timeout=0.5)
            if any(chain.failed for chain in chains):
                break
    finally:
        for chain in chains:
            chain.stop()
        for chain in chains:
            chain.join()
    for chain in chains:
        if chain.failed:
            command = " ".join(chain.failed)
            raise UserError(f"the stage {command!r} failed: mend what it says above, then start this again")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, "--config configs/digits/MRCA_digits.yaml --out runs/mine --num-rounds 2 SEED 1"
    )
    parser.add_argument(
        "--num-rounds",
        "--rounds",
        type=int,
        metavar="N",
        help="so many rounds (default: all of the schedule)",
    )
    parser.add_argument(
        "--staleness",
        type=int,
        choices=(0, 1),
        help="1: generate while training (default: FEEDBACK.STALENESS)",
    )
    parser.add_argument("--out", metavar="RUN", help="run folder (default: OUTPUT_DIR)")
    parser.add_argument(
        "--num-gpus", "--gpus", type=int, default=1, metavar="N", help="GPUs of this machine to use"
    )
    for stage in ("generator", "segmenter", "trainer"):
        help_ = f"interpreter of the {stage} (default: the one that runs this)"
        parser.add_argument(f"--python-{stage}", metavar="PATH", default=sys.executable, help=help_)
    add_config_arguments(parser)
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    overrides = [
        below_working_directory(text) if key == "OUTPUT_DIR" else text
        for key, text in zip(("", *args.opts), args.opts, strict=False)
    ]
    if args.staleness is not None:
        overrides += ["FEEDBACK.STALENESS", str(args.staleness)]
    if args.out:
        overrides += ["OUTPUT_DIR", below_working_directory(args.out)]
    cfg = load_config(args.config, overrides)
    in_schedule = num_rounds(cfg) if cfg.INPUT.INST_POOL_FEED else 1
    rounds = in_schedule if args.num_rounds is None else args.num_rounds
    if not 1 <= rounds <= in_schedule:
        raise UserError(
            f"--num-rounds {rounds}: the schedule has {in_schedule} (SOLVER.MAX_ITER / ROUND_ITERS, or 1 "
            "without INPUT.INST_POOL_FEED)"
        )
    python = Interpreters(args.python_generator, args.python_segmenter, args.python_trainer)
    # Where one ends for good all do, so that none waits in vain: those that make something may take any time.
    config = ["--config", find_config(args.config), "FEEDBACK.TIMEOUT", "1e9", *overrides]
    layout, terminal = run_layout(cfg), Terminal(sys.stderr)
    terminal.say("rounds", f"run folder: {layout.root}")
    progress = RunProgress(layout, rounds)

    def say_progress() -> None:
        if line := progress.report():
            terminal.say("rounds", line)

    pools, trained = [], 0
    if cfg.INPUT.INST_POOL_FEED:
        pools = pool_steps(config, rounds, args.num_gpus, python, _done(layout.annotations_done, rounds))
        trained = _done(layout.feedback_history, rounds)
    environment = os.environ | {"MRCA_PYTHON": python.trainer}
    training = training_steps(config, rounds, args.num_gpus, layout, python, trained)
    chains = [
        Chain("pools", pools, environment, terminal),
        Chain("training", training, environment, terminal, say_progress),
    ]
    run_chains(chains)
    print(f"{rounds} round{' is' if rounds == 1 else 's are'} done: {layout.root}   Report: {layout.report}")


if __name__ == "__main__":
    run_cli(main)
