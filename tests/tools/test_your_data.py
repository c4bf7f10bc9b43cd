"""docs/your_data.md, word for word, on a COCO file as people have them."""

import importlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api
from PIL import Image

from exchange.config import REPOSITORY
from exchange.layout import RunLayout
from mrca.commands import COMMANDS
from tools import run_rounds

CATEGORIES = {3: "Würfel", 7: "disc", 12: "red_bar", 20: "Zelt (klein)", 31: "beam", 45: "crate"}
HEIGHT, WIDTH = 96, 128


def annotation(number: int, image_id: int, category_id: int, rng: np.random.Generator) -> dict:
    """A rectangle: as polygon, run lengths as numbers or as text in turn, and once as a crowd."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    x, y, w, h = rng.integers([0, 0, 16, 16], [WIDTH - 50, HEIGHT - 50, 50, 50]).tolist()
    mask[y : y + h, x : x + w] = 1
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=0))
    counts = np.diff([0, *changes.tolist(), HEIGHT * WIDTH]).tolist()
    text = mask_api.encode(mask)["counts"].decode()
    forms = [
        [[x, y, x + w, y, x + w, y + h, x, y + h]],
        {"size": [HEIGHT, WIDTH], "counts": counts},
        {"size": [HEIGHT, WIDTH], "counts": text},
    ]
    crowd = number == 4
    return {
        "id": 1000 - 7 * number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": int(crowd),
        "segmentation": forms[1 if crowd else number % 3],
    }


def write_coco(path: Path, num_images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for n in range(num_images):
        image_id, name = 90001 - 13 * n, f"Größe {n % 2}/bild {path.stem} {n}.png"
        target = path.parent / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(target)
        images.append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for category_id in (*CATEGORIES,)[n % 3 :: 3]:
            annotations.append(annotation(len(annotations), image_id, category_id, rng))
    categories = [{"id": number, "name": name} for number, name in reversed(CATEGORIES.items())]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path, python: str) -> Path:
    """As the clone, with a command ``mrca`` in ``bin`` and data in ``my_data``."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "my_data").mkdir()
    write_coco(tmp_path / "my_data/train.json", 6, seed=0)
    write_coco(tmp_path / "my_data/val.json", 3, seed=1)
    command = tmp_path / "bin/mrca"
    command.parent.mkdir()
    command.write_text(f"#!{python}\nfrom mrca.commands import main\nmain()\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs/your_data.md").read_text(), re.DOTALL)


def test_five_commands_take_a_coco_file_to_a_table(folder: Path) -> None:
    commands, small, _ = blocks()
    assert len(commands.splitlines()) == 5
    paths = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    environment = os.environ | paths | {"OMP_NUM_THREADS": "1"}
    bash = ["bash", "-euc", f"{small}\n{commands}"]
    done = subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run, names = folder / "runs/try", list(CATEGORIES.values())
    assert done.stdout.count("round 0: 6 images\n") == 1
    assert f"1 round is done: {run}   Report: {run}/report.html\nmine_val: {run}/train/" in done.stdout
    table = done.stdout[done.stdout.index("mine_val: ") :].splitlines()
    assert [line[:4] for line in table[1:4]] == ["    ", "box ", "mask"]
    assert [line.split("  ")[-1] for line in table[5:11]] == names  # in the order of their ids
    assert table[-1] == f"scores and predictions: {run}/train/inference/mine_val"
    assert "NUM_CLASSES: 6\n" in (run / "run.yaml").read_text() and (folder / "my_data/seen.png").exists()
    shown = done.stderr.splitlines()
    for stage in ("rounds", "generate", "segment", "train"):
        lines = [line for line in shown if line.startswith(f"[{stage}] ")]
        assert lines[0].endswith(f"run folder: {run}"), stage
    others = ("Loading weights", "Loading pipeline", "[transformers]", "Warning:")
    assert not [line for line in shown if any(noise in line for noise in others)]


def test_one_round_by_hand_is_what_rounds_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = run_rounds.pool_steps([], 1, 1, run_rounds.Interpreters())
    steps += run_rounds.training_steps([], 1, 1, RunLayout("runs/x"), run_rounds.Interpreters())[:1]
    monkeypatch.setattr(sys, "argv", ["mrca"])
    for line, ((command,),) in zip(blocks()[2].splitlines(), ([step] for step in steps), strict=True):
        program, name, *arguments = shlex.split(line)
        assert program == "mrca"
        parser = importlib.import_module(COMMANDS[name].module).build_parser()
        by_hand, called = (
            vars(parser.parse_intermixed_args(given)) | {"config": "", "gpu": 0, "div": -1, "num_div": 1}
            for given in (arguments, command[2:])
        )
        assert by_hand == called
