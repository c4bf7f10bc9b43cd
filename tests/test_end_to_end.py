"""Two rounds of all three stages, as processes of their own, with the embedded models and settings for seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exchange import files
from exchange.annotations import read_annotations
from exchange.feedback import read_feedback
from exchange.layout import RunLayout
from exchange.manifest import is_complete, read_round
from tools.build_lvis_digits import build
from tools.quickstart import as_table, summarise

REPOSITORY = Path(__file__).resolve().parent.parent
SETTINGS = {
    "_BASE_": str(REPOSITORY / "configs/digits/MRCA_digits.yaml"),
    "DATASETS": {"TRAIN": ["train"], "TEST": ["val"]},
    "SOLVER": {"MAX_ITER": 3, "ROUND_ITERS": 2, "IMS_PER_BATCH": 2},
    "GENERATOR": {"STEPS": 6, "PER_CLASS": 1},
    "SEGMENTER": {"CLIP_THRESHOLD": -100.0},
    "FEEDBACK": {"FROM_ROUND": 1},
}


def first_images(path: Path, count: int) -> None:
    """Shortens an annotation file to its first images."""
    content = json.loads(path.read_text())
    content["images"] = content["images"][:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(content))


def run_rounds(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/run_rounds.py", "--config", str(folder / "x.yaml"), *arguments]
    environment = os.environ | {"DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end")
    build(str(folder / "digits"), seed=0)
    first_images(folder / "digits" / "lvis_digits_val.json", 12)
    custom = [[part, f"digits/lvis_digits_{part}.json", "digits/images"] for part in ("train", "val")]
    settings = SETTINGS | {"OUTPUT_DIR": str(folder / "run")}
    settings["DATASETS"] = settings["DATASETS"] | {"CUSTOM": custom}
    (folder / "x.yaml").write_text(yaml.safe_dump(settings))
    done = run_rounds(folder, "--staleness", "0")
    assert done.returncode == 0, done.stderr
    return folder


def test_two_rounds_close_the_loop(finished):
    layout = RunLayout(str(finished / "run"))
    for round_ in range(2):
        assert is_complete(read_round(layout, round_))
        assert files.exists(layout.annotations_done(round_))
        made = [instance for manifest in read_round(layout, round_) for instance in manifest.instances]
        assert len(made) == 30
        assert all(instance.guided == (round_ > 0) for instance in made)
    initial, first, second = (read_feedback(layout.feedback_history(round_)) for round_ in (-1, 0, 1))
    assert [f.iteration for f in (initial, first, second)] == [0, 2, 3]
    assert all(drift is None for drift in initial.drift) and all(drift > 0 for drift in first.drift)
    assert read_feedback(layout.feedback_file) == second
    assert files.sha256(second.checkpoint) == second.checkpoint_sha256


def test_the_pool_is_cumulative_and_every_annotation_has_its_files(finished):
    layout = RunLayout(str(finished / "run"))
    first, second = (read_annotations(layout.annotations(round_)) for round_ in range(2))
    assert len(first.annotations) < len(second.annotations) <= 60
    names = {image["file_name"] for image in second.images}
    assert {image["file_name"] for image in first.images} < names
    for name in names:
        assert files.exists(layout.raw(name)) and files.exists(layout.segmented(name))


def test_a_person_gets_a_table_and_pictures(finished):
    layout = RunLayout(str(finished / "run"))
    summary = summarise(layout, layout, rounds=2)
    assert [entry["pool"] for entry in summary["rounds"]] == [
        len(read_annotations(layout.annotations(round_)).annotations) for round_ in range(2)
    ]
    assert len(as_table(summary).splitlines()) == 2 + 4
    for round_ in range(2):
        assert files.exists(files.join(layout.pictures_dir, f"generated_rd{round_:02}.png"))


def test_running_it_again_changes_no_result(finished):
    run = finished / "run"
    results = [
        path for path in run.rglob("*.*") if path.suffix in (".json", ".png", ".webp", ".pth", ".arrow")
    ]
    results = [path for path in results if run / "pictures" not in path.parents]
    before = {path: path.stat().st_mtime_ns for path in results}
    done = run_rounds(finished, "--staleness", "0")
    assert done.returncode == 0, done.stderr
    assert {str(path) for path, time in before.items() if path.stat().st_mtime_ns != time} == set()


def test_a_run_folder_of_other_settings_is_refused_with_exit_code_2(finished):
    done = run_rounds(finished, "--staleness", "0", "SEED", "5")
    assert done.returncode == 2
    assert "belongs to a run with SEED 0, not 5" in done.stderr
