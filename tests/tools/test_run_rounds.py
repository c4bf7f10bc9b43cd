import io
import json
import os
import signal
import subprocess
import sys

import pytest

from exchange import files
from exchange.config import REPOSITORY
from exchange.errors import UserError
from exchange.layout import RunLayout
from tests.running import commands_with, needs_process_list
from tools import run_rounds
from tools.run_rounds import Chain, Interpreters, pool_steps, run_chains, training_steps
from tools.stage_output import Terminal


def python(code):
    return [sys.executable, "-c", code]


def test_a_chain_runs_its_steps_in_order_and_the_commands_of_a_step_side_by_side(tmp_path):
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write"
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)  # neither end opens before the other does
    side_by_side = [python(f"open({pipe!r}, {mode!r})") for mode in ("r", "w")]
    chain = Chain("test", [[python(f"{write}('a')")], side_by_side, [python(f"{write}('b')")]], {})
    chain.start()
    chain.join()
    assert chain.failed is None
    assert log.read_text() == "ab"


def test_each_process_is_shown_with_its_stage_and_its_number(tmp_path, capfd):
    commands = []
    for name in ("generate.py", "segmentAndFilter.py", "launch.sh", "visualize.py", "report.py"):
        (tmp_path / name).write_text("import sys; print('here', file=sys.stderr)")
        commands.append([sys.executable, str(tmp_path / name)])
    steps = [commands[:1] * 2, *([command] for command in commands[1:])]
    after, terminal = [], io.StringIO()
    chain = Chain("test", steps, {}, after_step=lambda: after.append(True))
    named = Chain("named", [[python("print('there')")]], {}, Terminal(terminal))
    for each in (chain, named):
        each.start()
        each.join()
    assert terminal.getvalue() == "[named] there\n"
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines[:2]) == ["[generate 0] here", "[generate 1] here"]
    assert lines[2:] == [f"[{stage}] here" for stage in ("segment", "train", "visualize", "report")]
    assert len(after) == 5


def test_a_chain_that_is_stopped_between_two_steps_starts_nothing_more(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    steps = [[python(f"open({str(path)!r}, 'w')")] for path in (first, second)]
    chain = Chain("test", steps, {}, after_step=lambda: chain.stop())
    chain.start()
    chain.join()
    assert first.exists() and not second.exists() and chain.failed is None


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_failed_command_stops_its_chain_and_is_named(end, tmp_path):
    after = tmp_path / "after"
    bad = python(f"import os, sys; {end}")
    chain = Chain("test", [[python("pass"), bad, python("pass")], [python(f"open({str(after)!r}, 'w')")]], {})
    chain.start()
    chain.join()
    assert chain.failed == bad
    assert not after.exists()


def test_what_fails_in_one_chain_ends_the_other_with_everything_that_it_started(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    late = f"import time; pipe = open({str(pipe)!r}, 'w'); time.sleep(30); pipe.write('late')"
    parent = python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {late!r}])")
    bad = python(f"open({str(pipe)!r}).read(0); raise SystemExit(3)")  # as soon as somebody writes
    lasting, failing = (Chain("test", [[command]], dict(os.environ)) for command in (parent, bad))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UserError, match="the stage .*SystemExit.* failed"):
        run_chains([lasting, failing])
    os.set_blocking(reader, True)
    assert os.read(reader, 9) == b""  # all writers are gone
    assert not lasting.is_alive() and lasting.failed is None
    os.close(reader)


def test_chains_that_go_well_are_left_to_their_end():
    class Lasting:
        failed, looks = None, 3

        def start(self):
            assert self.looks == 3

        def is_alive(self):
            return self.looks > 0

        def join(self, timeout=None):
            self.looks -= 1

        def stop(self):
            assert not self.is_alive()

    run_chains([Lasting(), Lasting()])


def test_the_command_line_decides_rounds_folder_staleness_processes_and_interpreters(
    tmp_path, monkeypatch, capfd
):
    path, launch = str(tmp_path / "x.yaml"), str(REPOSITORY / "launch.sh")
    started = []
    monkeypatch.setattr(run_rounds, "run_chains", started.extend)
    monkeypatch.setattr(run_rounds, "Chain", lambda *parts: parts)

    monkeypatch.chdir(tmp_path)  # stages hear of relative paths in full
    monkeypatch.setenv("MRCA_PYTHON", "another")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_rounds.py", "--config", "x.yaml", *arguments])
        started.clear()
        capfd.readouterr()
        run_rounds.main()
        return started

    def told(rounds):
        run = tmp_path / "run"
        seen = capfd.readouterr()
        assert seen.out == f"{rounds} done: {run}   Report: {run}/report.html\n"
        assert seen.err.splitlines()[0] == f"[rounds] run folder: {run}"

    for feed, rounds in ((False, 1), (True, 2)):
        solver = {"MAX_ITER": 25, "ROUND_ITERS": 10}
        (tmp_path / "x.yaml").write_text(json.dumps({"SOLVER": solver, "INPUT": {"INST_POOL_FEED": feed}}))
        names = [f"--python-{stage}={stage}" for stage in ("generator", "segmenter", "trainer")]
        given = ["--rounds", str(rounds), "--staleness", "0", "--out", "run", "--gpus", "3", *names]
        other = f"OUTPUT_DIR {tmp_path}/other SEED 7 FEEDBACK.STALENESS 0"
        config = ["--config", path, "FEEDBACK.TIMEOUT", "1e9"]  # stages wait as long as others run
        config += [*other.split(), "OUTPUT_DIR", str(tmp_path / "run")]
        pools, training = call(*given, "OUTPUT_DIR", "other", "SEED", "7")
        told("2 rounds are" if feed else "1 round is")
        files.write_done(RunLayout(str(tmp_path / "run")).feedback_history(0))
        training[-1]()  # what is done after a step of training
        left = ", about a minute left" if feed else ""
        assert capfd.readouterr().err == f"[rounds] 1 of {rounds} rounds are done{left}\n"
        files.remove(RunLayout(str(tmp_path / "run")).feedback_history(0))
        interpreters = Interpreters("generator", "segmenter", "trainer")
        assert pools[1] == (pool_steps(config, 2, 3, interpreters) if feed else [])
        assert training[1][::3] == [[["bash", launch, "--num-gpus", "3", *config]]] * rounds
        assert training[2] == os.environ | {"MRCA_PYTHON": "trainer"}
        pools, training = call()
        assert len(training[1]) == 3 * (3 if feed else 1)  # all of the schedule
        assert training[2]["MRCA_PYTHON"] == sys.executable
        assert all(command[0] == sys.executable for step in pools[1] for command in step)
    for rounds in ("0", "4"):
        with pytest.raises(UserError, match=f"--num-rounds {rounds}: the schedule has 3"):
            call("--rounds", rounds)


def test_after_each_training_its_images_are_drawn_and_the_page_of_the_run_is_written(tmp_path):
    layout, config = RunLayout(str(tmp_path)), ["--config", "x.yaml", "OUTPUT_DIR", str(tmp_path)]
    steps = training_steps(config, 2, 1, layout, Interpreters(trainer="train"))
    draw, report = (str(REPOSITORY / f"tools/{name}.py") for name in ("visualize", "report"))
    for r in (0, 1):
        given = f"data --round {r} --out {tmp_path}/pictures/training_rd0{r}.png"
        assert steps[3 * r + 1][0][4:] == ["train", draw, *given.split(), *config]
        assert steps[3 * r + 2][0][4:] == [sys.executable, report, str(tmp_path)]


def test_a_run_that_goes_on_trains_no_more_rounds_than_are_missing_and_starts_little_for_the_others(
    tmp_path, monkeypatch
):
    started = []
    monkeypatch.setattr(run_rounds, "run_chains", started.extend)
    monkeypatch.setattr(run_rounds, "Chain", lambda name, steps, *_: steps)
    solver = {"MAX_ITER": 100, "ROUND_ITERS": 10}
    (tmp_path / "x.yaml").write_text(json.dumps({"SOLVER": solver, "INPUT": {"INST_POOL_FEED": True}}))
    layout, launch = RunLayout(str(tmp_path / "run")), str(REPOSITORY / "launch.sh")
    for pools, trained, calls, trainings in ((4, 3, [(0, 4), (4, 1), (5, 1)], 3), (6, 6, [(0, 6)], 0)):
        for round_ in range(pools):
            files.write_done(layout.annotations_done(round_))
        for round_ in range(trained):
            files.write_done(layout.feedback_history(round_))
        started.clear()
        given = ["--config", str(tmp_path / "x.yaml"), "--num-rounds", "6", "--out", layout.root]
        monkeypatch.setattr(sys, "argv", ["run_rounds.py", *given])
        run_rounds.main()
        told = [command[command.index("--st-rd") + 1 :][:3:2] for step in started[0] for command in step]
        assert told == [[str(first), str(number)] for first, number in calls for _ in ("drawn", "cut out")]
        assert sum(command[:2] == ["bash", launch] for step in started[1] for command in step) == trainings
        pages = [step for step in started[1] if str(REPOSITORY / "tools/report.py") in step[0]]
        assert len(pages) == trainings + 1  # that of the last round before may be missing


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path):
    [[report]] = training_steps([], 1, 1, RunLayout(str(tmp_path / "no run")), Interpreters())[2:]
    after = tmp_path / "after"
    chain = Chain("test", [[report], [python(f"open({str(after)!r}, 'w')")]], dict(os.environ))
    chain.start()
    chain.join()
    assert chain.failed is None and after.exists()


def test_each_round_has_one_generator_process_a_gpu_and_each_stage_its_own_interpreter():
    interpreters = Interpreters("gen", "seg", "train")
    steps = pool_steps(["--config", "x.yaml"], rounds=2, gpus=3, python=interpreters)
    draw, cut_out = (
        REPOSITORY / name for name in ("generator/generate.py", "diSegmenter/segmentAndFilter.py")
    )
    told = []
    for round_ in (0, 1):
        this = f"--st-rd {round_} --num-rounds 1 --config x.yaml"
        told.append([f"gen {draw} --gpu {n} --div {n} --num-div 3 {this}" for n in range(3)])
        told.append([f"seg {cut_out} {this}"])
    assert [[" ".join(command) for command in step] for step in steps] == told


# A stage, and the processes that it starts: tells that it is there, and stays if it is the one to be stopped.
STAGE = """#!/bin/sh
case "$*" in *"$MRCA_TEST_HOLD"*) sh -c "echo held; sleep 600; true"; exit;; esac
"""


@needs_process_list
@pytest.mark.parametrize("held", ["generate.py", "segmentAndFilter.py", "train_net", "visualize.py"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_at_any_stage_rounds_ends_it_with_all_that_it_started(held, number, tmp_path):
    stage = tmp_path / "stage"
    stage.write_text(STAGE)
    stage.chmod(0o755)
    command = [
        sys.executable,
        str(REPOSITORY / "tools/run_rounds.py"),
        *f"--num-rounds 1 --out {tmp_path}".split(),
    ]
    command += ["--config", str(REPOSITORY / "configs/digits/MRCA_digits.yaml")]
    command += [
        part for name in ("generator", "segmenter", "trainer") for part in (f"--python-{name}", str(stage))
    ]
    process = subprocess.Popen(
        ["env", "--default-signal", *command],
        env=os.environ | {"MRCA_TEST_HOLD": held},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert any(line.endswith("] held\n") for line in process.stdout)  # as soon as there is such a line
    process.send_signal(number)
    rest = process.stdout.read()  # returns when nobody holds the pipe any more
    assert rest.splitlines()[-1] == "stopped; the same command goes on" and process.wait() == 128 + number
    assert commands_with("echo held; sleep 600") == []
