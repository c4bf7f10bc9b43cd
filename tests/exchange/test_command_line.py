"""What stands in a help, and what model libraries say on the terminal."""

import importlib
import logging
import re
import sys

import pytest
from huggingface_hub import utils as hub

from exchange.command_line import (
    add_command,
    add_device_argument,
    left_out_without_matplotlib,
    make_parser,
    quiet_model_libraries,
)


@pytest.mark.parametrize(
    ("program", "called", "name"),
    [("/x/pool.py", "python /x/pool.py", "pool.py"), ("mrca pool", "mrca pool", "mrca pool")],
)
def test_an_example_begins_as_the_program_was_called(program, called, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    parser = make_parser("what it does", "stats run")
    command = add_command(parser.add_subparsers(), "stats", "count", "run")
    assert parser.prog == name
    assert parser.epilog == command.epilog == f"example:\n  {called} stats run"
    assert (parser.description, command.description) == ("what it does", "count")


def test_the_help_of_an_option_says_its_default_once_and_no_other_does():
    parser = make_parser("what it does", "")
    parser.add_argument("folder", nargs="?", default="runs", help="read")
    for name, default in (("zero", 0), ("none", None), ("own", 3), ("off", False)):
        parser.add_argument(f"--{name}", default=default, help="(default: three)" if name == "own" else name)
    assert re.findall(r"\(default.*", parser.format_help()) == ["(default: 0)", "(default: three)"]
    add_device_argument(parser)
    assert parser.parse_args([]).device == ""  # a GPU if there is one


def test_a_picture_is_left_out_without_matplotlib_and_for_no_other_reason(caplog):
    with left_out_without_matplotlib("curve.png"):
        raise ModuleNotFoundError(name="matplotlib.pyplot")
    assert caplog.record_tuples == [
        (
            left_out_without_matplotlib.__module__,
            logging.WARNING,
            "curve.png is left out: matplotlib is not installed",
        )
    ]
    with pytest.raises(ModuleNotFoundError), left_out_without_matplotlib("curve.png"):
        raise ModuleNotFoundError(name="torch")


@pytest.mark.parametrize("name", ["transformers", "diffusers"])
def test_model_libraries_are_quiet_and_downloads_keep_their_bars(name):
    logging = importlib.import_module(f"{name}.utils.logging")
    before = logging.get_verbosity()
    logging.enable_progress_bar()  # and that of downloads
    try:
        quiet_model_libraries()
        assert logging.get_verbosity() == logging.ERROR and not logging.is_progress_bar_enabled()
        assert not hub.are_progress_bars_disabled()
        hub.disable_progress_bars()
        quiet_model_libraries()
        assert hub.are_progress_bars_disabled()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
