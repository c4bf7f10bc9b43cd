"""What a wheel of this repository does in another folder, on a machine without the repository."""

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from packaging.requirements import Requirement
from PIL import Image

from exchange.config import REPOSITORY
from tests.digits_run import write_run, write_scenes

EXTRAS = {"generate": "generator", "segment": "diSegmenter", "train": "detectron2_ext", "report": "tools"}


@dataclass(frozen=True)
class Installed:
    """A wheel, and the folder of packages that it was installed into."""

    wheel: Path
    site: Path

    def run(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in ``folder``, with this package among those of the interpreter."""
        paths = {
            name: os.pathsep.join(filter(None, [str(first), os.environ.get(name)]))
            for name, first in (("PYTHONPATH", self.site), ("PATH", self.site / "bin"))
        }
        return subprocess.run(command, cwd=folder, env=os.environ | paths, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    away = ignore_patterns(".*", "tests", "docs", "runs", "datasets", "build", "*.egg-info", "__pycache__")
    copytree(REPOSITORY, folder / "source", ignore=away)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(folder / "source"),
    ]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("mrca-*.whl")
    site = folder / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True
    )
    return Installed(wheel, site)


def test_the_wheel_is_one_package_with_everything_that_runs(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"mrca", "mrca-0.1.0.dist-info"}
    packed = {
        name.removeprefix("mrca/_repository/") for name in names if name.startswith("mrca/_repository/")
    }
    parts = ("exchange", "generator", "diSegmenter", "detectron2_ext", "tools")
    files = [path for part in parts for path in (REPOSITORY / part).rglob("*.py")]
    others = (
        "configs/**/*.yaml",
        "exchange/*.yaml",
        "assets/digits/**/*",
        "tools/run_report/page.*",
        "launch.sh",
    )
    for pattern in others:
        files += [path for path in REPOSITORY.glob(pattern) if path.is_file() and path.suffix != ".pyc"]
    assert packed == {path.relative_to(REPOSITORY).as_posix() for path in files}


def test_the_extras_are_the_requirements_of_the_stages(installed):
    (found,) = metadata.distributions(name="mrca", path=[str(installed.site)])
    requirements = [Requirement(line) for line in found.requires or []]
    for extra, folder in {"": "exchange", **EXTRAS}.items():
        lines = (REPOSITORY / folder / "requirements.txt").read_text().splitlines()
        wanted = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
        chosen = [
            r for r in requirements if (f'extra == "{extra}"' in str(r.marker) if extra else not r.marker)
        ]
        assert {str(r).partition(";")[0].strip() for r in chosen} == wanted, extra


def test_nobody_s_tools_and_exchange_are_shadowed_and_the_commands_have_their_own(installed, tmp_path):
    for name in ("tools/mine.py", "exchange.py", "generator/mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("OURS = True")
    code = "import mrca, tools.mine, generator.mine, exchange; assert exchange.OURS and mrca.__all__; mrca.Predictor"
    done = installed.run(tmp_path, sys.executable, "-c", code)
    assert "ImportError: mrca.Predictor needs MRCA's package 'exchange', but here that name is" in done.stderr
    assert str(tmp_path / "exchange.py") in done.stderr
    (tmp_path / "exchange.py").unlink()
    done = installed.run(tmp_path, sys.executable, "-c", "import mrca; mrca.Predictor")
    assert f"package 'generator', but here that name is ['{tmp_path / 'generator'}']" in done.stderr
    for program in (["mrca"], [sys.executable, "-m", "mrca"]):
        done = installed.run(tmp_path, *program, "rounds", "--help")
        assert done.stdout.startswith("usage: mrca rounds "), done.stderr


def test_relative_paths_are_below_the_working_directory_but_those_of_configs_and_assets_are_the_package_s(
    installed, tmp_path
):
    code = (
        "import mrca; from exchange.config import from_repository as full, load_config\n"
        "cfg = load_config('configs/digits/MRCA_digits.yaml')\n"
        "for path in (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, 'datasets', '/x'): print(full(path))"
    )
    done = installed.run(tmp_path, sys.executable, "-c", code)
    assert done.stdout.split() == [
        str(tmp_path / "runs/digits"),
        str(installed.site / "mrca/_repository/assets/digits/segmenter/model.safetensors"),
        str(tmp_path / "datasets"),
        "/x",
    ], done.stderr


@pytest.fixture
def folder(tmp_path):
    """A folder far from the repository, with a run and photographs as docs/python.md has them."""
    write_run(tmp_path / "runs/quickstart", "GENERATOR.STEPS", "2")
    write_scenes(tmp_path / "photos", 3)
    return tmp_path


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)


def test_a_trained_network_predicts_as_docs_python_md_has_it(installed, folder, python):
    done = installed.run(folder, python, "-c", blocks("docs/python.md")[0])
    assert done.stdout.splitlines()[0].startswith("blue four 0."), done.stderr
    assert re.search(r"\(\d+, 160, 160\)", done.stdout)
    for command in (
        ("export", "runs/quickstart/train/model_initial.pth", "digits.safetensors"),
        ("predict", "--weights", "digits.safetensors", "photos", "--out", "found"),
    ):
        done = installed.run(folder, python, "-m", "mrca", *command)
        assert not done.returncode, done.stderr
    assert "in 3 images" in done.stdout
    assert len(list((folder / "found/pictures").iterdir())) == 3


def test_twenty_red_threes_are_drawn_as_docs_python_md_and_the_readme_have_it(installed, folder, python):
    code, (readme,) = blocks("docs/python.md")[1], blocks("README.md")
    assert len(code.strip().splitlines()) <= 5
    report = "print(len(threes), threes[0].size)"
    done = installed.run(folder, python, "-c", f"{code}\n{report}\n{readme}\n{report}")
    lines = done.stdout.splitlines()
    assert lines[0] == lines[2] == "20 (64, 64)" and lines[1].startswith("['blue four'"), done.stderr
    assert Image.open(folder / "three.png").size == (64, 64)


def test_one_s_own_pipeline_is_guided_by_one_s_own_classifier_as_docs_python_md_has_it(
    installed, folder, python
):
    own = f"""
import torch
from diffusers import DiffusionPipeline
sd3 = {str(installed.site / "mrca/_repository/assets/digits/sd3")!r}
pipeline = DiffusionPipeline.from_pretrained(sd3, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
classifier = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 3))
"""
    done = installed.run(folder, python, "-c", own + blocks("docs/python.md")[2])
    assert re.match(r"\[[\d.]+, [\d.]+\]\n", done.stdout), done.stderr
