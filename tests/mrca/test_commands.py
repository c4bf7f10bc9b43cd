"""The command ``mrca`` and the help of everything that it calls."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from unittest.mock import Mock

import pytest

import mrca
from detectron2_ext.predictor import Predictor
from exchange.config import REPOSITORY
from mrca import commands
from mrca.commands import COMMANDS

SCRIPTS = [*("guidance_effect", "build_lvis_digits", "train_digits_models", "digits.invalid_share")]
MODULES = sorted({command.module for command in COMMANDS.values()} | {f"tools.{name}" for name in SCRIPTS})
NUMBERS = {  # that an option has where it is left out; others are 0, as every seed is
    "detectron2_ext.train_net": {"--num-gpus": 1, "--num-machines": 1},
    "diSegmenter.segmentAndFilter": {"--num-shares": 1},
    "generator.generate": {"--num-div": 3},
    "tools.compare": {"--seeds": 3, "--jobs": 1, "--num-gpus": 1},
    "tools.draw": {"--num": 8},
    "tools.guidance_effect": {"--pairs": 120},
    "tools.pool": {"--near": 0.99, "--images": 8},
    "tools.predict": {"--score": 0.5, "--batch-size": 8},
    "tools.run_rounds": {"--num-gpus": 1},
    "tools.status": {"--every": 10, "--quiet": 900},
    "tools.visualize": {"--num": 16, "--score": 0.5},
    "tools.write_prompts": {"--num": 32, "--temperature": 1},
}
SLOW_IMPORTS = ("torch", "transformers", "diffusers", "matplotlib.pyplot")


def parsers_of(module: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """The parser of a script, and those of its sub-commands."""
    monkeypatch.setattr(sys, "argv", ["prog"])
    found = [importlib.import_module(module).build_parser()]
    for action in found[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += action.choices.values()
    return found


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    has_commands = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
    return (parser.parse_args if has_commands else parser.parse_intermixed_args)(arguments)


@pytest.mark.parametrize("module", MODULES)
def test_every_option_has_a_help_with_its_default(module, monkeypatch):
    for parser in parsers_of(module, monkeypatch):
        groups = [group for group in parser._mutually_exclusive_groups if group.required]
        one_is_required = {id(action) for group in groups for action in group._group_actions}
        for action in parser._actions:
            assert action.help, (parser.prog, action.dest)
            may_be_left_out = not action.required and id(action) not in one_is_required
            if action.option_strings and action.nargs != 0 and may_be_left_out:
                text = parser._get_formatter()._expand_help(action)
                assert "default" in text or "release's name" in text, (parser.prog, action.option_strings)
                assert text.count("(default") < 2 and "default: None" not in text, action.option_strings
            if action.nargs == 0:
                shown = parser._get_formatter()._expand_help(action)
                assert "default: False" not in shown, action.option_strings


@pytest.mark.parametrize("module", MODULES)
def test_a_number_that_is_left_out_stays_what_it_was_from_one_release_to_the_next(module, monkeypatch):
    actions = [action for parser in parsers_of(module, monkeypatch) for action in parser._actions]
    numbers = [action for action in actions if type(action.default) in (int, float) and action.default]
    assert {one.option_strings[0]: one.default for one in numbers} == NUMBERS.get(module, {})


@pytest.mark.parametrize("module", MODULES)
def test_the_example_of_every_help_parses_and_names_files_that_are_there(module, monkeypatch):
    main, *rest = parsers_of(module, monkeypatch)
    for parser in (main, *rest):
        program, *arguments = shlex.split(re.fullmatch(r"example:\n  (.*)", parser.epilog)[1])
        assert program == "prog"
        parse(main, arguments)
        for path in re.findall(r"(?:configs|assets)/\S+", parser.epilog):
            assert (REPOSITORY / path).is_file(), path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_parse_in_the_list_and_in_its_help(name, monkeypatch):
    command = COMMANDS[name]
    parser = parsers_of(command.module, monkeypatch)[0]
    for example in (command.example, parser.epilog.partition(" prog ")[2]):
        assert parse(parser, [*command.preset, *shlex.split(example)])
    assert set(command.extra.split(",")) <= {"generate", "segment", "train", "report"}


def test_a_command_is_the_tool_of_its_name_or_a_stage():
    stages = {"generate": "generator.generate", "segment": "diSegmenter.segmentAndFilter"}
    stages |= dict.fromkeys(("train", "feedback", "evaluate"), "detectron2_ext.train_net")
    others = {name: f"tools.{name.replace('-', '_')}" for name in COMMANDS} | {"rounds": "tools.run_rounds"}
    assert {name: command.module for name, command in COMMANDS.items()} == others | stages


def test_a_stage_needs_its_own_extra_and_what_shows_or_starts_all_stages_all_of_them():
    for number, stage in enumerate(("generate", "segment", "train"), start=1):
        assert COMMANDS[stage].extra == stage and COMMANDS[stage].summary.startswith(f"stage {number}: ")
    of_all = {name for name, command in COMMANDS.items() if command.extra == "generate,segment,train,report"}
    assert of_all == {"quickstart", "rounds", "compare", "report"}


@pytest.mark.parametrize("module", MODULES)
def test_words_of_an_option_are_joined_by_hyphens_and_the_release_s_spelling_is_an_alias(module, monkeypatch):
    for parser in parsers_of(module, monkeypatch):
        for action in parser._actions:
            assert "_" not in "".join(action.option_strings[:1]), action.option_strings


def test_mrca_has_the_five_names_of_its_parts_which_it_finds():
    owners = {"CRITERIA": "criteria", "Guidance": "guidance", "guided": "guidance", "Painter": "painter"}
    expected = [getattr(importlib.import_module(f"generator.{owners[name]}"), name) for name in owners]
    assert [getattr(mrca, name) for name in mrca.__all__] == [*expected, Predictor]
    assert not hasattr(mrca, "nothing") and not hasattr(mrca, "__nothing__")
    (finder,) = (finder for finder in sys.meta_path if finder.__module__ == "mrca")
    assert finder.find_spec("exchange").origin == str(REPOSITORY / "exchange/__init__.py")
    assert finder.find_spec("tools") is None


def test_mrca_knows_its_parts_by_way_of_a_link(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(REPOSITORY)
    origin = str(tmp_path / "link/exchange/__init__.py")
    monkeypatch.setattr(sys.modules["exchange"].__spec__, "origin", origin)
    assert mrca.Predictor is Predictor


def test_help_imports_nothing_slow():
    code = f"""
import sys
from mrca.commands import COMMANDS, main
for name in COMMANDS:
    sys.argv = ["mrca", name, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code
    assert not [module for module in {SLOW_IMPORTS} if module in sys.modules], name
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.count("usage: mrca ") == len(COMMANDS)


@pytest.mark.slow  # a process for each
def test_every_script_starts_by_its_path_from_any_working_directory(tmp_path, python):
    for module in MODULES:
        command = [python, str(REPOSITORY / f"{module.replace('.', '/')}.py"), "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.startswith("usage: "), (module, done.stderr)


def test_every_script_starts_as_a_module_from_any_working_directory(tmp_path):
    code = f"""
import runpy, sys
for module in {MODULES}:
    sys.argv = [module, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, module
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.count("usage: ") == len(MODULES), done.stderr


def test_without_a_command_each_is_listed_with_a_line_and_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mrca"])
    commands.main()
    text = capsys.readouterr().out
    names = "quickstart generate segment train feedback evaluate rounds predict draw write-prompts export"
    names += " export-matting pool report status overview compare visualize cache bench"
    assert " ".join(COMMANDS) == names
    for name, command in COMMANDS.items():
        text = text[text.index(f"\n  {name:14} {command.summary}\n") :]  # in that order
        assert f" mrca {name} {command.example}\n" in text


@pytest.mark.parametrize(
    ("name", "preset"), [("train", []), ("evaluate", ["--eval-only"]), ("feedback", ["--eval-initial"])]
)
def test_a_command_is_the_script_with_the_same_arguments(name, preset, monkeypatch):
    seen = []
    module = importlib.import_module("detectron2_ext.train_net")
    monkeypatch.setattr(module, "main", lambda: seen.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["mrca", name, "--config", "x.yaml"])
    monkeypatch.setattr(sys, "path", ["a folder with other tools", *sys.path])
    commands.main()
    assert seen == [[f"mrca {name}", *preset, "--config", "x.yaml"]]
    assert sys.path[0] == str(REPOSITORY)


def test_a_command_that_there_is_not_and_a_package_that_is_not_installed_are_one_sentence(
    monkeypatch, capsys
):
    def without_torch():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(importlib.import_module("tools.draw"), "main", without_torch)
    for argument, sentence in (
        ("genrate", "error: mrca has no command 'genrate': did you mean generate?"),
        ("§", "error: mrca has no command '§': did you mean "),
        (
            "draw",
            "error: mrca draw needs torch, which is not installed: pip install 'mrca[generate]'",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["mrca", argument])
        with pytest.raises(SystemExit, match="2"):
            commands.main()
        assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize("name", ["generator.nothing", "tools", None])
def test_a_module_of_our_own_that_is_missing_is_no_package_to_install(name, monkeypatch):
    module = importlib.import_module("generator.generate")
    monkeypatch.setattr(module, "main", Mock(side_effect=ModuleNotFoundError("it is gone", name=name)))
    monkeypatch.setattr(sys, "argv", ["mrca", "generate"])
    with pytest.raises(ModuleNotFoundError, match="it is gone"):
        commands.main()


@pytest.mark.parametrize(
    ("several", "words"),
    [
        ("--num-gpus 2", "--num-gpus 2"),
        ("--num-gpus=2", "--num-gpus 2"),  # launch.sh does not take it apart, and would start this again
        ("--machine-rank 1 --num-machines 2", "--num-machines 2 --machine-rank 1"),
        ("--num-mach 2 --machine-rank=0", "--num-machines 2 --machine-rank 0"),
    ],
)
def test_several_gpus_or_machines_start_the_training_by_launch_sh(monkeypatch, several, words):
    module = importlib.import_module("detectron2_ext.train_net")
    started = []
    monkeypatch.setattr(module.os, "execvpe", lambda *given: started.append(given) or sys.exit(0))
    monkeypatch.delenv("MRCA_PYTHON", raising=False)
    for python in (sys.executable, "/the/user/s/python"):
        with pytest.raises(SystemExit):
            module.main(["--config", "x.yaml", *several.split(), "SEED", "3"])
        program, command, environment = started.pop()
        rest = ["--config", "x.yaml", "SEED", "3"]
        assert command == ["bash", str(REPOSITORY / "launch.sh"), *words.split(), *rest]
        assert program == "bash" and environment == os.environ | {"MRCA_PYTHON": python}
        monkeypatch.setenv("MRCA_PYTHON", "/the/user/s/python")
