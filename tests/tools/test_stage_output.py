"""What a person sees of several processes at once."""

import io
import os
import threading

import pytest

from exchange import files
from exchange.layout import RunLayout
from tools.stage_output import RunProgress, Terminal


class Screen(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def follow(terminal: Terminal, stage: str) -> tuple[int, threading.Thread]:
    """A thread that shows what is written to the descriptor that is returned beside it."""
    reader, writer = os.pipe()
    thread = threading.Thread(target=terminal.follow, args=(stage, os.fdopen(reader, "rb")))
    thread.start()
    return writer, thread


def test_lines_have_their_stage_in_front_and_of_a_bar_a_file_gets_the_end():
    screen = Screen(is_terminal=False)
    writer, thread = follow(Terminal(screen), "train")
    text = "12:00:00 a: Größe\n\r  0%|   | 0/2\r 50%|█  | 1/2\r\x1b[A100%|██| 2/2\nerror: no"
    for byte in text.encode():  # however the pipe cuts it
        os.write(writer, bytes([byte]))
    os.close(writer)
    thread.join()
    assert screen.getvalue() == "[train] 12:00:00 a: Größe\n[train] 100%|██| 2/2\n[train] error: no\n"


def test_what_is_no_text_is_shown_as_far_as_it_is_and_so_is_what_follows():
    screen = Screen(is_terminal=False)
    writer, thread = follow(Terminal(screen), "train")
    os.write(writer, b"a\xff\nb\n")
    os.close(writer)
    thread.join()
    assert screen.getvalue() == "[train] a\ufffd\n[train] b\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"begun\n\r1/2", ["[train] begun\n", "[train] 1/2", "[train] 1/2\n"]),
        (b"\r2/2\nend", ["[train] 2/2\n", "[train] end\n"]),
    ],
)
def test_a_terminal_shows_a_bar_while_it_grows_and_a_line_when_it_ends(text, shown):
    screen = Screen(is_terminal=True)
    writer, thread = follow(Terminal(screen), "train")
    os.write(writer, text)
    os.close(writer)
    thread.join()
    clear = "\r\x1b[K"
    assert screen.getvalue() == "".join(clear + piece for piece in shown)


def test_a_terminal_has_one_bar_at_a_time_below_the_lines_of_all_stages_and_in_one_line(monkeypatch):
    screen = Screen(is_terminal=True)
    terminal = Terminal(screen)
    for stage, text, done in (
        ("generate", "1/9", False),
        ("train", "1/5", False),
        ("train", "loss 3", True),
        ("generate", "9/9", True),
        ("train", "2/5", False),
        ("train", "", True),
        ("generate", "1/3", False),
    ):
        terminal._piece(stage, text.encode(), done)
    monkeypatch.setenv("COLUMNS", "14")  # a full line would begin the next one
    terminal._piece("generate", b"3/3", done=False)
    clear = "\r\x1b[K"
    shown = [
        "",
        "[generate] 1/9",
        "[generate] 1/9",
        "[train] loss 3\n[generate] 1/9",
        "[generate] 9/9\n",
        "[train] 2/5",
        "[generate] 1/3",
        "[generate] 3/",
    ]
    assert screen.getvalue() == clear.join(shown)


@pytest.mark.parametrize(
    ("done_before", "seconds", "left"),
    [(0, [720, 60], ["24 min", "1 min"]), (1, [3600], ["1 h 00 min"]), (2, [60], [])],
)
def test_the_time_left_is_that_of_the_last_round_for_each_that_is_missing(
    tmp_path, done_before, seconds, left
):
    layout, clock = RunLayout(str(tmp_path)), [0.0]
    for round_ in range(-1, done_before):  # with that of the starting weights
        files.write_done(layout.feedback_history(round_))
    progress = RunProgress(layout, 3, clock=lambda: clock[0])
    for number, length in enumerate(seconds):
        clock[0] += length
        files.write_done(layout.feedback_history(done_before + number))
        rest = f", about {left[number]} left" if left else ""
        assert progress.report() == f"{done_before + number + 1} of 3 rounds are done{rest}"
    clock[0] += 5
    assert progress.report() is None  # nothing since


def test_of_rounds_that_end_together_each_took_its_share(tmp_path):
    layout, clock = RunLayout(str(tmp_path)), [0.0]
    progress = RunProgress(layout, 5, clock=lambda: clock[0])
    for round_ in range(2):
        files.write_done(layout.feedback_history(round_))
    clock[0] = 600.0
    assert progress.report() == "2 of 5 rounds are done, about 15 min left"
    files.remove(layout.feedback_history(1))  # to be evaluated again
    assert progress.report() == "1 of 5 rounds are done"
