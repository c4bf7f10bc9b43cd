"""Each stage works with what its own requirements file brings, and nothing of the other stages."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).resolve().parent.parent
# What each part may import from this repository.
MAY_IMPORT = {
    "mrca": {"mrca", "exchange"},  # and the commands and exports, by name, when they are asked for
    "exchange": {"exchange"},
    "generator": {"exchange", "generator", "detectron2_ext.modeling"},
    "diSegmenter": {"exchange", "diSegmenter"},
    "detectron2_ext": {"exchange", "detectron2_ext"},
}
_TENSORS = {"structures", "roi_pooler", "distributed"}
_TRAINING = _TENSORS | {"data", "paste", "modeling", "evaluation"}
# What each file or folder of stage 3 may import of that stage besides itself.
ROOMS = {
    **{name: _TENSORS for name in _TENSORS},
    "data": _TENSORS,
    "paste": _TENSORS | {"data"},
    "modeling": _TENSORS,
    "evaluation": _TENSORS | {"data"},
    "engine": _TRAINING,
    "with_detectron2": _TRAINING | {"engine"},
    "predictor": _TENSORS | {"data", "modeling"},
    "train_net": _TRAINING | {"engine", "with_detectron2"},
    "__init__": {"with_detectron2"},
}
PARTS = set(MAY_IMPORT) | {"tools", "tests"}
STAGES = ("generator", "diSegmenter", "detectron2_ext")
LISTS = ("exchange", *STAGES, "tools")
# Works together with a package that no stage requires.
OPTIONAL = {"detectron2_ext.with_detectron2": "detectron2"}


def imports_of(folder: str) -> dict[str, set[str]]:
    """Modules that each file of a folder imports anywhere in it."""
    found = {}
    for path in (REPOSITORY / folder).rglob("*.py"):
        modules = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[str(path.relative_to(REPOSITORY))] = modules
    return found


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def requirements(folder: str) -> list[Requirement]:
    lines = (REPOSITORY / folder / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def listed(folder: str) -> set[str]:
    return {normal(requirement.name) for requirement in requirements(folder)}


def brought_along(names: set[str]) -> set[str]:
    """``names`` and all that they depend on, as installed."""
    known: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        known.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        needed = [Requirement(line) for line in requires]
        waiting |= {
            normal(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})
        } - known
    return known


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_no_part_imports_another_part_that_it_must_not_know(folder):
    for path, modules in imports_of(folder).items():
        for module in modules:
            if module.partition(".")[0] in PARTS:
                allowed = MAY_IMPORT[folder]
                assert any(module == part or module.startswith(f"{part}.") for part in allowed), (
                    path,
                    module,
                )


def test_no_folder_of_the_training_stage_imports_one_above_it():
    for path, modules in imports_of("detectron2_ext").items():
        room = Path(path).parts[1].removesuffix(".py")
        used = {module.split(".")[1] for module in modules if module.startswith("detectron2_ext.")}
        assert not used - ROOMS[room] - {room}, path


@pytest.mark.parametrize("stage", ("exchange", *STAGES))
def test_every_package_that_a_stage_imports_is_listed_in_its_requirements(stage):
    distributions = metadata.packages_distributions()
    folders = [stage] + (["detectron2_ext/modeling"] if stage == "generator" else [])
    for folder in folders:
        for path, modules in imports_of(folder).items():
            for top in {module.partition(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or top in PARTS or top not in distributions:
                    continue
                if any(
                    path.startswith(part.replace(".", "/")) and top == OPTIONAL[part] for part in OPTIONAL
                ):
                    continue
                assert {normal(name) for name in distributions[top]} & listed(stage), (path, top)


def test_the_tools_import_only_what_they_and_the_stages_list():
    known = brought_along(set().union(*(listed(folder) for folder in LISTS)))
    distributions = metadata.packages_distributions()
    for path, modules in imports_of("tools").items():
        if path.startswith(
            "tools/benchmarks/"
        ):  # the other sides of their ratios are said to be missing where they are
            continue
        for top in {module.partition(".")[0] for module in modules} & distributions.keys() - PARTS:
            assert {normal(name) for name in distributions[top]} & known, (path, top)


def test_mrca_imports_nothing_that_is_not_python_s_or_of_this_project():
    for path, modules in imports_of("mrca").items():
        tops = {module.partition(".")[0] for module in modules}
        assert tops <= sys.stdlib_module_names | PARTS, path


def test_the_requirements_at_the_top_are_the_union_of_the_parts():
    union = set().union(*(listed(folder) for folder in LISTS))
    assert union <= listed("."), union - listed(".")


def test_every_package_that_is_pinned_takes_the_oldest_python_that_is_promised():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest = re.fullmatch(r">=(3\.\d+)", project["requires-python"])[1]
    for pinned in requirements(".") + requirements("tests"):
        installed = metadata.metadata(pinned.name)
        if installed["Version"] in pinned.specifier:  # an environment of the user's own may have another one
            assert oldest in SpecifierSet(installed.get("Requires-Python", "")), pinned.name
    assert f"They need Python {oldest} or newer" in (REPOSITORY / "README.md").read_text()
    assert f"older than {oldest}:" in (REPOSITORY / "tools/environment.sh").read_text()


def test_an_environment_without_the_disk_for_it_is_refused_before_anything_is_installed(tmp_path):
    (tmp_path / "df").write_text("#!/bin/sh\necho Filesystem\necho /dev/sda 9000000 2000000 7000000 23% /\n")
    (tmp_path / "df").chmod(0o755)
    result = subprocess.run(
        ["bash", REPOSITORY / "tools/environment.sh"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MRCA_VENV": "below/venv"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert f"{tmp_path} has 7 GB of free disk, the environment takes 8: free some, or" in result.stderr
    assert not (tmp_path / "below").exists()


IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path[:0] = [{repository!r}, {environment!r}]
package = importlib.import_module({stage!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.startswith({optional!r}):
        importlib.import_module(module.name)
"""


@functools.cache
def parts_of(name: str) -> dict[str, Path]:
    """The files and folders that a distribution has at the top of an environment; torch lists thousands."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return {}
    tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}
    return {top: Path(distribution.locate_file(top)) for top in tops}


def environment_of(stage: str, folder: Path) -> None:
    """Links what the requirements of a stage bring along into ``folder``, as an environment of its own has it."""
    for name in brought_along(listed(stage)):
        for top, path in parts_of(name).items():
            link = folder / top
            if not link.exists():
                link.symlink_to(path)


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_of_a_stage_imports_with_nothing_but_its_requirements(stage, tmp_path):
    environment_of(stage, tmp_path)
    assert not (tmp_path / "pytest").exists()
    code = IMPORT_ALL.format(
        repository=str(REPOSITORY), environment=str(tmp_path), stage=stage, optional=tuple(OPTIONAL)
    )
    # -S: without the site-packages of this interpreter
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
