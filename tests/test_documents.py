"""What documents name is there: files, settings, commands with their options."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator

import pytest
import yaml

from exchange.config import REPOSITORY, flatten
from mrca.commands import COMMANDS

DOCS = sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
CONFIGS = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").rglob("*.yaml"))
OURS = "assets|configs|detectron2_ext|diSegmenter|docs|exchange|generator|mrca|tests|tools"
PATH = re.compile(rf"(?:{OURS})/(?!_repository)[\w./*-]+")  # which an installed package alone has


def read(page: str) -> str:
    return (REPOSITORY / page).read_text()


def known_keys() -> set[str]:
    """All settings, ours and those of others, and the groups that they are in."""
    keys = {key for key, _ in flatten(yaml.safe_load(read("exchange/defaults.yaml")))}
    for kind in yaml.safe_load(read("exchange/foreign_keys.yaml")).values():
        keys |= set(kind)
    return keys | {key.rpartition(".")[0] for key in keys}


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS, "exchange/defaults.yaml"])
def test_settings_and_files_of_ours_that_a_page_names_are_there(page):
    keys, text = known_keys(), read(page)
    groups = "|".join({key.partition(".")[0] for key in keys if "." in key})
    for key in re.findall(rf"\b(?:{groups})(?:\.[A-Z][A-Z0-9_]*)+", text):
        begins = any(known.startswith(key) for known in keys)  # SEGMENTER.ONNX_… stands for several
        assert key in keys or (key.endswith("_") and begins), key
    for path in PATH.findall(text):
        assert any(REPOSITORY.glob(path.rstrip("./"))), path


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", read(page)):
        assert (REPOSITORY / page).parent.joinpath(link).exists(), link


def commands_in(page: str) -> Iterator[list[str]]:
    """The calls of ``mrca`` in the blocks of code of a page."""
    for block in re.findall(r"^```\w*\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("mrca "):
                for call in line.replace("$TRY", "").replace("…", "").split("&&"):
                    yield shlex.split(call, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_parse(page, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prog"])
    for name, *arguments in commands_in(page):
        parser = importlib.import_module(COMMANDS[name].module).build_parser()
        has_commands = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
        parse = parser.parse_args if has_commands else parser.parse_intermixed_args
        assert parse([*COMMANDS[name].preset, *arguments]), (name, arguments)
    for name in re.findall(r"`mrca ([a-z-]+)", read(page)):
        assert name in COMMANDS, name
