"""Ctrl-C, SIGTERM and SIGHUP: what a process does, and what becomes of those that it started."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from exchange import stopping
from exchange.config import REPOSITORY
from exchange.stopping import Stopped, put_off

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ask(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_with_the_exit_code_that_tells_it(listening, number):
    with pytest.raises(Stopped, match=signal.Signals(number).name) as raised:
        ask(number)
    assert raised.value.exit_code == 128 + number


def stop(number: int) -> None:
    raise Stopped(number)


@pytest.mark.parametrize("asked", [ask, stop])  # by a signal, and as where another process has ended
def test_a_stop_is_not_lost_where_python_drops_what_is_raised(asked, listening, capfd):
    class Ended:
        def __del__(self):
            asked(signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM"):
        ended = Ended()
        del ended
        threading.Event().wait(60)
        pytest.fail("it was lost")
    assert capfd.readouterr().err == ""


def test_another_error_that_python_drops_is_shown_and_nothing_else_comes_of_it(listening, capfd):
    class Faulty:
        def __del__(self):
            raise ValueError("of its own")

    faulty = Faulty()
    del faulty
    told = capfd.readouterr().err
    assert "ValueError: of its own" in told and told.count("Exception ignored in") == 1


def test_tidying_up_is_not_disturbed_by_the_same_wish_and_only_ctrl_c_insists(listening):
    with pytest.raises(Stopped, match="SIGINT"):
        try:
            ask(signal.SIGTERM)
        finally:
            ask(signal.SIGTERM)
            ask(signal.SIGHUP)
            ask(signal.SIGINT)
            pytest.fail("Ctrl-C did not insist")


def test_a_signal_that_is_put_off_is_known_at_once_and_raised_when_the_block_is_done(listening):
    done = []
    with pytest.raises(Stopped, match="SIGTERM"), put_off() as is_asked:
        assert not is_asked()
        ask(signal.SIGTERM)
        ask(signal.SIGHUP)
        assert is_asked()
        done.append("all")
    assert done == ["all"]
    with pytest.raises(Stopped, match="SIGINT"), put_off():
        ask(signal.SIGINT)  # the second wish
        pytest.fail("Ctrl-C did not insist")


@pytest.mark.parametrize("fails", [False, True])
def test_after_a_block_that_puts_off_a_signal_is_raised_at_once_again(listening, fails):
    with suppress(KeyError), put_off():
        if fails:
            raise KeyError
    with pytest.raises(Stopped, match="SIGTERM"):
        ask(signal.SIGTERM)
        pytest.fail("it was put off")


def test_an_error_in_a_block_that_puts_off_is_not_hidden_by_the_signal(listening):
    with pytest.raises(KeyError), put_off():
        ask(signal.SIGTERM)
        raise KeyError


def test_a_signal_that_is_ignored_stays_so_as_under_nohup_and_all_do_as_before_afterwards(listening):
    before = {signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: print}
    for number, handler in before.items():
        signal.signal(number, handler)
    with stopping.listening():
        ask(signal.SIGHUP)
    assert {number: signal.getsignal(number) for number in before} == before


# When its end of the pipe is closed, what the child has started says whether it is still there.
PARENT = "exec 3<&0; (read line <&3; echo survived) & trap 'sleep 0.1; exit 7' TERM; echo there; wait"


@pytest.mark.parametrize(("finish", "code"), [(stopping.end_children, 7), (stopping.kill_children, -9)])
def test_children_have_ended_with_what_they_started_and_are_not_ended_twice(finish, code, monkeypatch):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [stopping.start(["sh", "-c", PARENT], **pipes) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["there\n"] * 2
    finish()
    assert [child.returncode for child in children] == [code] * 2
    assert [child.communicate()[0] for child in children] == [""] * 2
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("the number may be another process's by now"))
    finish()


def test_a_child_that_was_just_being_started_as_the_signal_came_is_asked_to_end(listening, monkeypatch):
    children, popen = [], subprocess.Popen

    def started(*args, **options):
        children.append(popen(*args, **options))
        ask(signal.SIGTERM)
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(Stopped):
        stopping.start(["sleep", "1000"])
    assert children[0].returncode == -signal.SIGTERM and not stopping._children


def test_a_child_that_another_thread_starts_leaves_put_off_what_is(listening):
    with pytest.raises(Stopped), put_off():
        starting = threading.Thread(target=stopping.start, args=(["sleep", "1000"],))
        starting.start()
        starting.join()
        ask(signal.SIGTERM)
        done = True
    stopping.kill_children()
    assert done


def test_handlers_and_hooks_are_those_from_before_when_nobody_listens_any_more(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", print)

    def state():
        return sys.unraisablehook, *map(signal.getsignal, SIGNALS)

    before = state()
    with stopping.listening():
        assert state() != before
    assert state() == before


HEARS = "import signal; [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]\n"
LONG = f"""{HEARS}
import sys
from exchange.errors import run_cli
from exchange.stopping import run
within = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
run_cli(lambda: run([sys.executable, "-c", within, sys.argv[1]]))
"""
# Tells that it is there, and holds the pipe until it ends.
HOLD = "import signal\nprint('there', flush=True)\nwhile True: signal.pause()"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_is_stopped_leaves_no_process_says_so_in_a_line_and_tells_the_signal(number):
    command = [sys.executable, "-c", LONG, HOLD]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    assert process.stdout.read() == ""  # returns when nobody holds the pipe any more
    assert process.stderr.read() == "stopped; the same command goes on\n"
    assert process.wait() == 128 + number


def test_children_are_asked_to_end_first_and_killed_if_ctrl_c_is_pressed_again():
    stubborn = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
    stubborn += HOLD
    code = f"{HEARS}import sys; from exchange.errors import run_cli; from exchange.stopping import run\n"
    code += "run_cli(lambda: run([sys.executable, '-c', sys.argv[1]]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, stubborn],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == "" and process.wait() == 130
