"""The script of stage 1, from command line to files."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from exchange.config import load_config
from exchange.errors import UserError
from exchange.feedback import Feedback, write_feedback
from exchange.files import write_done
from exchange.layout import RunLayout
from exchange.manifest import is_complete, read_round
from exchange.run import claim_run
from exchange.seconds import read_seconds
from exchange.seeds import instance_seed
from generator import generate, production
from generator.pipelines import PipelineSource
from tests.exchange.test_formats import FEEDBACK
from tests.generator.tiny_pipelines import SIZE, make_classifier
from tools.run_report.settings import read_settings

SCRIPT = Path(generate.__file__)


def run(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, *options: str) -> RunLayout:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--config", str(world.config), *options])
    generate.main()
    return RunLayout(str(world.run))


def digests(world: SimpleNamespace) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (world.run / "pool/raw").glob("*.png")
    }


def feedback(round_: int, **changes: object) -> Feedback:
    values = {"categories": [1, 2, 5, 9], "box_ap": [10.0, 20.0, 30.0, 40.0], "drift": [1.0] * 4}
    values |= {"mask_ap": [10.0, 20.0, None, 40.0], "checkpoint": "model.pth", "checkpoint_sha256": "0" * 64}
    return dataclasses.replace(FEEDBACK, round=round_, **values | changes)


@pytest.fixture
def fake_network(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Stands in for the segmenter; the calls of its loader."""
    calls: list[dict[str, object]] = []

    def load(cfg: object, path: str, **options: object) -> object:
        calls.append({"path": path, **options})
        return make_classifier(4)

    monkeypatch.setattr("detectron2_ext.modeling.builder.load_feedback_network", load)
    return calls


def test_round_zero_makes_every_planned_image_and_a_complete_manifest(world, monkeypatch):
    layout = run(world, monkeypatch, "--round", "1")
    manifests = read_round(layout, 0)
    assert is_complete(manifests)
    of_training = ("INPUT.", "MODEL.ACTIVE_")  # says the first stage that trains
    assert not any(key.startswith(of_training) for key in read_settings(layout)[0] if key != "INPUT.FORMAT")
    (manifest,) = manifests
    assert sum(manifest.asked.values()) == len(manifest.instances) == 12
    for record in manifest.instances:
        assert Image.open(layout.raw(record.file)).size == (SIZE, SIZE)
        assert (record.guided, record.criterion_before, record.criterion_after) == (False, None, None)
    assert manifest.asked[1] > manifest.asked[2] > manifest.asked[5]  # the rarer, the more


@pytest.mark.bits
def test_any_number_of_shards_makes_the_same_files(world, monkeypatch):
    run(world, monkeypatch, "--round", "1", "--div", "-1")
    whole, table = digests(world), world.run / "pictures/allocation_rd00.csv"
    allocation = table.read_text()
    for path in [*(world.run / "pool/raw").iterdir(), *(world.run / "pool/manifests").iterdir(), table]:
        path.unlink()
    for shard in ("2", "1", "0"):
        layout = run(world, monkeypatch, "--round", "1", "--div", shard, "--num_div", "3")
        assert table.exists() == (shard == "0")
    assert digests(world) == whole and table.read_text() == allocation
    assert is_complete(read_round(layout, 0))


def test_torchrun_environment_chooses_the_shard_and_the_gpu_unless_that_is_named(world, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "7")):
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(
        "generator.pipelines.choose_device", lambda gpu: chosen.append(gpu) or torch.device("cpu")
    )
    layout = run(world, monkeypatch, "--round", "1")
    run(world, monkeypatch, "--round", "1", "--gpu", "5")
    (manifest,) = read_round(layout, 0)
    assert (manifest.shard, manifest.num_shards, len(manifest.instances)) == (1, 2, 4)
    assert chosen == [7, 5]
    assert [path.name for path in (world.run / "logs").iterdir()] == ["generate_1of2.log"]


def test_a_complete_round_needs_no_model(world, monkeypatch):
    run(world, monkeypatch, "--round", "1")
    monkeypatch.setattr(PipelineSource, "_load", lambda *_, **__: pytest.fail("a model was loaded"))
    claim_run(load_config(str(world.config), ["MODEL.ROI_HEADS.NUM_CLASSES", "4"]), trains=True)
    run(world, monkeypatch, "--round", "1", "INPUT.USE_COPY_METHOD", "syn_copy")  # of no interest to stage 1


def test_a_round_in_the_pool_is_not_drawn_again_though_its_images_were_dropped(world, monkeypatch, capsys):
    layout = run(world, monkeypatch, "--round", "1")
    for path in (world.run / "pool/raw").glob("*.png"):
        path.unlink()
    write_done(layout.annotations_done(0))
    monkeypatch.setattr(PipelineSource, "_load", lambda *_, **__: pytest.fail("a model was loaded"))
    run(world, monkeypatch, "--round", "1")
    assert "images" not in capsys.readouterr().out
    run(world, monkeypatch, "--round", "1", "--dry-run")
    assert digests(world) == {} and "round 0: 12 images\n" in capsys.readouterr().out


def test_runs_as_a_script_in_its_folder_and_ends_with_a_sentence_and_code_2_on_bad_input(world):
    command = [sys.executable, SCRIPT.name, "--config", str(world.config), "--div", "7"]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --div 7 of --num-div 3")


def test_guided_round_uses_the_network_that_the_feedback_names(world, monkeypatch, fake_network):
    layout = RunLayout(str(world.run))
    write_feedback(layout, feedback(0))
    write_done(layout.annotations_done(0))
    half = ("GENERATOR.GUIDANCE_SCALE", "0.1", "GENERATOR.DTYPE", "bfloat16")
    run(world, monkeypatch, "--st_rd", "1", "--round", "2", *half)
    (call,) = fake_network
    assert (call["path"], call["sha256"], call["use_ema"]) == ("model.pth", "0" * 64, True)
    assert call.get("dtype", torch.float32) == torch.float32  # whatever GENERATOR.DTYPE is
    (manifest,) = read_round(layout, 1)
    assert all(record.guided and record.criterion_before > 0 for record in manifest.instances)
    assert all(record.criterion_after > 0 for record in manifest.instances)
    assert read_seconds(layout) == {}  # nothing was waited for


def test_staleness_chooses_the_round_whose_feedback_counts(world, monkeypatch, fake_network):
    layout = RunLayout(str(world.run))
    for round_ in (-1, 0, 1):
        write_feedback(layout, feedback(round_, checkpoint=f"after{round_}.pth"))
    run(world, monkeypatch, "--st_rd", "1", "--round", "3", "FEEDBACK.STALENESS", "1")
    assert [call["path"] for call in fake_network] == ["after-1.pth", "after0.pth"]


@pytest.mark.parametrize(
    ("staleness", "missing", "command"),
    [
        ("0", "the feedback of round 0", "mrca train"),
        ("1", "the feedback of the starting weights", "mrca feedback"),
    ],
)
def test_who_waits_for_feedback_says_for_which_and_counts_the_seconds_to_the_round(
    world, monkeypatch, staleness, missing, command
):
    options = ["--st_rd", "1", "--div", "1", "--num-div", "2", "FEEDBACK.STALENESS", staleness]
    with pytest.raises(UserError, match=f"{missing}, from which round 1 is drawn.*{command}"):
        run(world, monkeypatch, *options, "FEEDBACK.TIMEOUT", "0")
    assert [path.name for path in (world.run / "seconds").iterdir()] == ["generate_1of2.json"]
    assert list(read_seconds(RunLayout(str(world.run)))[1]) == ["waiting (stage 1)"]


def test_fewer_images_at_once_are_drawn_where_that_is_asked_and_never_more(world, monkeypatch):
    limits = []
    monkeypatch.setattr("generator.build.build_sampler", lambda *_, limit: limits.append(limit))
    for options in ([], ["--bsz", "3"], ["--bsz", "9"]):
        run(world, monkeypatch, "--round", "1", "--dry-run", *options, "GENERATOR.BATCH_SIZE", "5")
    assert limits == [5, 3, 5]


def test_dry_run_shows_and_saves_the_allocation(world, monkeypatch, capsys):
    layout = RunLayout(str(world.run))
    for round_ in (0, 1):
        write_feedback(layout, feedback(round_, drift=[1, 1, 1, 8], mask_ap=[20, 5, 10, 10]))
    run(world, monkeypatch, "--st_rd", "1", "--round", "3", "--dry-run")
    tables = [
        np.genfromtxt(f"{layout.pictures_dir}/allocation_rd{r:02}.csv", delimiter=",", names=True, dtype=None)
        for r in (1, 2)
    ]
    first, second = ({int(row["id"]): int(row["images"]) for row in table} for table in tables)
    # shares 1/N: 20, 10, 4, 1; with drift · AP: 20·20, 10·5, 4·10, 1·80
    assert first == {1: 7, 2: 4, 5: 1, 9: 0}
    assert second == {1: 8, 2: 1, 5: 1, 9: 2} and list(second) == [1, 9, 2, 5]  # most images first
    assert "round 2: 12 images" in capsys.readouterr().out


def test_dry_run_shows_the_rounds_that_can_be_known_and_claims_nothing(world, monkeypatch, capsys):
    run(world, monkeypatch, "--dry-run")
    shown = capsys.readouterr().out
    assert [shown.count(f"round {r}: 12 images\n") for r in range(3)] == [1, 1, 0]
    assert "round 2: depends on feedback that is not there yet\n" in shown
    assert [path.name for path in world.run.iterdir()] == ["pictures"]
    write_feedback(RunLayout(str(world.run)), feedback(0))
    for staleness, known in (("0", False), ("1", True)):
        options = ("--st-rd", "2", "--round", "3", "FEEDBACK.STALENESS", staleness)
        run(world, monkeypatch, "--dry-run", *options)
        assert ("round 2: 12 images\n" in capsys.readouterr().out) == known


def largest_remainder(weights: list[float], total: int) -> list[int]:
    exact = total * np.array(weights) / sum(weights)
    images = np.floor(exact + 1e-9).astype(int)
    images[np.argsort(images - exact, kind="stable")[: total - images.sum()]] += 1
    return images.tolist()


@pytest.mark.parametrize(
    ("drift", "ap", "weights"),
    [
        (
            [3.0, 1.0, None, 40.0],
            [0.0] * 4,
            [3, 1 / 2, 44 / 3 / 5, 40 / 20],
        ),  # an early round knows no class yet
        ([3.0, 1.0, None, 40.0], [None] * 4, [3, 1 / 2, 44 / 3 / 5, 40 / 20]),
        ([0.0] * 4, [10.0, 80.0, 0.0, None], [10, 80 / 2, 0, 30 / 20]),
        ([None] * 4, [0.0] * 4, [1, 1 / 2, 1 / 5, 1 / 20]),
        ([0.0, 0.0, 1.0, 0.0], [5.0, 5.0, 0.0, 5.0], [1, 1 / 2, 1 / 5, 1 / 20]),  # no class has both
        ([1e-9, 1e9, 1e-9, None], [0.0, 100.0, 0.0, 0.0], [0, 1, 0, 0]),
    ],
)
def test_plans_of_three_rounds_follow_whatever_feedback_there_is_and_share_no_seed(
    world, monkeypatch, drift, ap, weights
):
    plans = []
    monkeypatch.setattr(
        production, "produce", lambda _, round_, plan, *rest: plans.append(plan) or Mock(instances=[])
    )
    for round_ in (-1, 0, 1):
        write_feedback(RunLayout(str(world.run)), feedback(round_, drift=drift, mask_ap=ap))
    run(world, monkeypatch, "SEED", "3")
    names = {1: "aerosol_can", 2: "bat_(animal)", 5: "cow", 9: "dog"}
    for round_, plan in enumerate(plans):
        images = largest_remainder([1, 1 / 2, 1 / 5, 1 / 20] if round_ < 2 else weights, 12)
        expected = [(c, i, n) for i, c in enumerate(names) for n in range(1, images[i] + 1)]
        assert [(p.category_id, p.class_index, p.instance) for p in plan] == expected
        for image in plan:
            assert image.file == f"{round_:02}_{image.category_id:04}_{image.instance:04}.png"
            assert image.seed == instance_seed(3, round_, image.category_id, image.instance)
            assert image.prompt == image.template.format(names[image.category_id])
    assert len({image.seed for plan in plans for image in plan}) == 3 * 12


def test_dry_run_needs_neither_model_nor_gpu(world, monkeypatch):
    monkeypatch.setattr(PipelineSource, "_load", lambda *_, **__: pytest.fail("a model was loaded"))
    layout = run(world, monkeypatch, "--round", "1", "--dry-run", "--gpu", "99")
    assert Image.open(f"{layout.pictures_dir}/allocation_rd00.png").size[0] > 100
    assert read_round(layout, 0) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--div", "3"], "--div 3"),
        (["--st_rd", "3"], "--st-rd 3"),
        (["GENERATOR.AP_MODE", "often"], "AP_MODE"),
        (["GENERATOR.TEMPLATES", "[a photo]"], "TEMPLATES"),
        (["GENERATOR.NAMES", "short"], "GENERATOR.NAMES"),
        (["GENERATOR.MIN_PER_CLASS", "4"], "MIN_PER_CLASS"),
        (["GENERATOR.DTYPE", "int8"], "GENERATOR.DTYPE"),
        (["GENERATOR.CRITERION", "doubt"], "GENERATOR.CRITERION"),
        (["MODEL.META_ARCHITECTURE", "EmbedRCNN"], "MODEL.META_ARCHITECTURE EmbedRCNN returns a feature"),
        (["GENERATOR.GUIDANCE_MODE", "magic"], "GENERATOR.GUIDANCE_MODE"),
        (["GENERATOR.GUIDANCE_EVERY", "0"], "GENERATOR.GUIDANCE_EVERY"),
        (["GENERATOR.GUIDANCE_SIGMAS", "[0.5]"], r"GENERATOR.GUIDANCE_SIGMAS is \[0\.5\]: it takes two"),
        (["GENERATOR.BATCH_SIZE", "0"], "GENERATOR.BATCH_SIZE is 0: it is 1 or more"),
        (["GENERATOR.STEPS", "0"], "GENERATOR.STEPS is 0: it is 1 or more"),
        (["GENERATOR.TWINS", "-1"], "GENERATOR.TWINS is -1: it is 0 or more"),
        (["GENERATOR.GUIDANCE_CHUNK", "-1"], "GENERATOR.GUIDANCE_CHUNK is -1: it is 0 or more"),
        (["GENERATOR.IMAGE_SIZE", "0"], "GENERATOR.IMAGE_SIZE is 0: it is 1 or more"),
        (["GENERATOR.IMAGE_SIZE", "60"], "GENERATOR.IMAGE_SIZE is 60: it is a multiple of 8"),
        (["--bsz", "-1"], "--bsz -1"),
        (["GENERATOR.MODEL", "no/such/model"], "GENERATOR.MODEL"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "42"], r"train\.json has 4 categories, but .*NUM_CLASSES is 42"),
        (["--st_rd", "1"], "round 1 .*mrca train"),  # no feedback yet
    ],
)
def test_bad_input_gets_a_sentence_that_names_it_and_claims_no_folder(world, monkeypatch, options, part):
    with pytest.raises(UserError, match=part):
        run(world, monkeypatch, *options)
    made = [path.suffix for path in (world.run / "pool/raw").glob("*")]
    assert not (world.run / "run.yaml").exists() and set(made) <= {".lock"}


def test_the_releases_names_of_the_yaml_and_of_the_run_folder_are_understood(
    world, monkeypatch, tmp_path, call
):
    monkeypatch.chdir(tmp_path)
    options = ["--cfg_path", str(world.config), "--round", "1", "--dry-run", "--ckpt_dir"]
    for pasted in ("none", "syn_copy"):  # of no interest to stage 1
        given = [*options, "./ckpt/", "--output_dir", str(tmp_path / "ckpt"), "INPUT.USE_COPY_METHOD", pasted]
        call(generate, *given)
    assert (tmp_path / "ckpt/pictures/allocation_rd00.csv").exists() and not world.run.exists()
    with pytest.raises(UserError, match="name two folders"):
        call(generate, *options, "ckpt", "--output_dir", "images")


def test_feedback_of_other_categories_is_refused(world, monkeypatch, fake_network):
    changed = feedback(0, categories=[1, 2, 5, 8])
    write_feedback(RunLayout(str(world.run)), changed)
    with pytest.raises(UserError, match="categories"):
        run(world, monkeypatch, "--st_rd", "1")


def test_balanced_and_val_acc_options_change_the_allocation_as_in_the_reference(world, monkeypatch):
    layout = run(world, monkeypatch, "--round", "1", "--balanced", "1")
    assert read_round(layout, 0)[0].asked == {1: 3, 2: 3, 5: 3, 9: 3}
    for options, balanced, mode in (
        ([], True, "inverse"),
        (["--balanced", "0"], False, "inverse"),
        (["--val-acc", "0"], True, "off"),
        (["--val_acc", "1"], True, "inverse"),
    ):
        args = generate.build_parser().parse_args(["--config", str(world.config), *options])
        cfg = load_config(args.config, ["GENERATOR.BALANCED", "True", "GENERATOR.AP_MODE", "inverse"])
        rule = generate.allocation_rule(args, cfg)
        assert (rule.balanced, rule.ap_mode) == (balanced, mode)


def test_manifest_names_what_was_drawn(world, monkeypatch):
    layout = run(world, monkeypatch, "--round", "1", "GENERATOR.NAMES", "clean")
    content = json.loads(Path(layout.manifest(0, 0, 1)).read_text())
    prompts = {record["prompt"] for record in content["instances"] if record["category_id"] == 2}
    assert prompts and all("bat animal" in prompt for prompt in prompts)
    assert {record["model"] for record in content["instances"]} == {world.settings["GENERATOR"]["MODEL"]}


def test_an_extra_category_is_planned_as_a_class_without_instances_whose_ap_is_unknown(
    world, monkeypatch, capsys, tmp_path
):
    (tmp_path / "extra.json").write_text(json.dumps([{"id": 12, "name": "tench"}]))
    layout, extra = RunLayout(str(world.run)), ("DATASETS.EXTRA_CATEGORIES", str(tmp_path / "extra.json"))
    known = {"box_ap": [10.0] * 4 + [None], "mask_ap": [10.0, 20.0, 30.0, 40.0, None], "drift": [1.0] * 5}
    write_feedback(layout, feedback(1, categories=[1, 2, 5, 9, 12], **known))
    run(world, monkeypatch, "--st-rd", "2", "--round", "3", "--dry-run", *extra)
    table = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    weights = {
        "1": 10.0,
        "2": 20 / 2,
        "5": 30 / 5,
        "9": 40 / 20,
        "12": 25.0,
    }  # AP / N, that of 12 the mean / 1
    shares = {row[0]: float(row[-2]) for row in table}
    total = sum(weights.values())
    assert shares == pytest.approx({key: weight / total for key, weight in weights.items()}, abs=1e-6)
    assert sum(int(row[-1]) for row in table) == 5 * 3  # GENERATOR.PER_CLASS
    layout = run(world, monkeypatch, "--round", "1", *extra)
    (manifest,) = read_round(layout, 0)
    drawn = [record for record in manifest.instances if record.category_id == 12]
    assert len(drawn) == manifest.asked[12] > 0 and all("tench" in record.prompt for record in drawn)
