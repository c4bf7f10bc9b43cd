"""A run folder as the stages leave it, without any of them: what a page of a run is written from."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from exchange import files
from exchange.feedback import Feedback, write_feedback
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, Manifest, write_manifest
from exchange.pool_index import PoolInstance, write_index
from tests.diSegmenter.conftest import disc_image, pool_instance
from tools.report import write_report

EVIL = "<script>alert(1)</script>"
NAMES = ["red disc", EVIL, "blue disc", "pink disc"]
FILTER = {"clip_threshold": 25.0, "area_share": [0.05, 0.95], "max_objects": 0, "drop_touching_border": False}


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return write_made_up_run(tmp_path / "run", NAMES)


def page(*roots: str) -> str:
    """The text of the page of these runs."""
    return Path(write_report(roots)).read_text()


def write_made_up_run(
    root: Path, names: Sequence[str], rounds: int = 2, per_class: int = 3, images: bool = True
) -> RunLayout:
    """Class i (from 1) is called ``names[i - 1]``; the first instance of a class is dropped in every round."""
    layout, ids = RunLayout(str(root)), list(range(1, len(names) + 1))
    settings = {"SOLVER.MAX_ITER": 10 * rounds, "SOLVER.ROUND_ITERS": 10, "GENERATOR.NAMES": "<b>raw</b>"}
    content = {"settings": settings, "versions": {"python": "3.11.0"}}
    files.write_bytes(layout.settings_file, yaml.safe_dump(content).encode())
    counts = {"image_count": 10, "instance_count": 999}  # as in a file that leaves it to others to group
    groups = [{"frequency": "rcf"[i % 3]} if i % 3 else counts for i in ids]
    categories = [{"id": i, "name": names[i - 1], **group} for i, group in zip(ids, groups, strict=True)]
    for round_ in range(rounds):
        lines = ["id,class,N,drift,AP,share,images"]
        lines += [
            f"{i},{json.dumps(names[i - 1]).replace(chr(92), '')},{10 * i},,,0.1,{per_class}" for i in ids
        ]
        path = f"{layout.pictures_dir}/allocation_rd{round_:02}.csv"
        files.write_bytes(path, "\n".join(lines).encode())
        generated, rows = [], []
        for i in ids:
            for number in range(1, per_class + 1):
                name = layout.instance_name(round_, i, number)
                prompt = f"a photo of {names[i - 1]}"
                criteria = (0.5, 0.75) if round_ else (None, None)
                generated.append(
                    GeneratedInstance(
                        name, i, number, 2**62 + number, "a photo of {}", prompt, bool(round_), *criteria
                    )
                )
                rows.append(_row(round_, i, number, prompt))
                if images:
                    files.write_bytes(layout.raw(name), encode_png(disc_image(4 + number)), durable=False)
        asked = dict.fromkeys(ids, per_class)
        write_manifest(layout, Manifest(round_, 0, 1, True, asked, generated, 60.0))
        write_index(layout, round_, rows)
        verdicts = [{"file": row.file, "kept": not row.reason} for row in rows]
        content = {"settings": FILTER, "unreadable": ["a.png"], "instances": verdicts}
        files.write_json(layout.verdicts(round_), content)
        files.write_json(
            layout.annotations(round_), {"images": [], "annotations": [], "categories": categories}
        )
        files.write_done(layout.annotations_done(round_))
    for round_ in range(-1, rounds):
        write_feedback(layout, _feedback(round_, ids))
    write_feedback(RunLayout(f"{root}/control"), _feedback(0, ids))
    metrics = [{"iteration": n, "lr": 1 / n, "total_loss": 3 / n, "time": 0.5} for n in range(1, 10 * rounds)]
    files.write_bytes(f"{layout.train_dir}/metrics.json", "\n".join(map(json.dumps, metrics)).encode())
    return layout


def ap_of(round_: int, i: int) -> float | None:
    """Classes with an odd id gain in each round, the others lose; that of every seventh is unknown."""
    return None if i % 7 == 0 else 50 + (i % 40) * (1 if i % 2 else -1) * (round_ + 1) / 10


def _row(round_: int, i: int, number: int, prompt: str) -> PoolInstance:
    values = {"seed": 2**62 + number, "prompt": prompt, "clip_white": None if number == 2 else 20.0}
    if number == 1:
        values |= {"reason": "CLIP score", "clip_black": 10.0}
    return pool_instance(round_, i, number, **{"clip_black": 28.0 + number + 2 * round_} | values)


def _feedback(round_: int, ids: Sequence[int]) -> Feedback:
    aps = [ap_of(round_, i) for i in ids]
    mean = float(np.mean([ap for ap in aps if ap is not None]))
    drift: list[float | None] = [None if round_ < 0 or (i == 2 and round_ > 0) else i / 1000 for i in ids]
    boxes = [None if ap is None else ap + 10 for ap in aps]
    values = (list(ids), boxes, aps, drift, mean + 10, mean, mean + round_, None, mean + 5)
    return Feedback(round_, 10, "model.pth", "0" * 64, "discs", *values, "2026-01-01T00:00:00")
