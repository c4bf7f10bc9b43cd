"""The settings of a run: what must stay, what may change, how many rounds they make."""

import argparse
import functools
import platform
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from fvcore.common.config import CfgNode

from exchange import files, run
from exchange.config import REPOSITORY, flatten, load_config
from exchange.errors import UserError
from exchange.run import (
    add_round_arguments,
    chosen_rounds,
    claim_run,
    num_rounds,
    open_run,
    round_iterations,
    versions,
)

CONFIG = str(REPOSITORY / "configs/digits/MRCA_digits.yaml")


def settings(root: Path, *overrides: str):
    return load_config(CONFIG, ["OUTPUT_DIR", str(root), *overrides])


FREE = {
    "OUTPUT_DIR",
    "DATASETS.CUSTOM",
    "MODEL.DEVICE",
    "MODEL.META_ARCHITECTURE",
    "MODEL.ROI_HEADS.NAME",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.PREFETCH_FACTOR",
    "FEEDBACK.TIMEOUT",
    "GENERATOR.EMBEDDING_CACHE",
    "GENERATOR.GUIDANCE_CHECKPOINTING",
    "GENERATOR.GUIDANCE_CHUNK",
    "GENERATOR.TWINS",
    "SEGMENTER.ANNOTATION_FILE_LIMIT",
    "SEGMENTER.BATCH_SIZE",
    "SEGMENTER.KEEP_RAW",
    "SEGMENTER.TRUST_REMOTE_CODE",
    "SEGMENTER.WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.KEEP_CHECKPOINTS",
    "SOLVER.LOG_PERIOD",
    "SOLVER.TENSORBOARD",
    "TEST.EVAL_PERIOD",
}


def with_others(cfg: CfgNode, keys: set[str]) -> CfgNode:
    """``cfg`` with another value at each of these keys, but for that of the run folder."""
    other = cfg.clone()
    other.defrost()
    for key in keys - {"OUTPUT_DIR"}:
        *parents, name = key.split(".")
        functools.reduce(dict.__getitem__, parents, other)[name] = "another"
    return other


def test_what_changes_no_result_may_change_on_resumption(tmp_path):
    cfg = settings(tmp_path / "run")
    claim_run(cfg)
    written = tmp_path / "run/run.yaml"  # of a release in which workers counted as a setting
    written.write_text(written.read_text().replace("  SEED: 0\n", "  SEED: 0\n  SEGMENTER.WORKERS: 99\n"))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    free = with_others(cfg, FREE)
    free.OUTPUT_DIR = str(tmp_path / "moved")
    for folder in ("", "pool", "pool/raw", "seconds", "train"):
        files.write_bytes(str(tmp_path / "moved" / folder / f"x.{files._kernel()}-01234567.tmp"), b"")
    assert open_run(free, "pool", "pool/raw").root == str(tmp_path / "moved")
    left = {path.parent.name for path in (tmp_path / "moved").rglob("*.tmp")}
    assert left == {"train"}  # what killed writers left where this stage does not write


def test_versions_are_of_those_packages_that_an_environment_has(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: real(name if name != "torchvision" else "no such"))
    assert {"python", "torch", "timm", "onnxruntime"} <= versions().keys()
    assert "torchvision" not in versions()


def test_whatever_else_changes_is_refused(tmp_path):
    cfg = settings(tmp_path)
    claim_run(cfg)
    fixed = {key for key, _ in flatten(cfg)} - FREE
    with pytest.raises(UserError, match=rf"\(and {len(fixed) - 1} more\)"):
        open_run(with_others(cfg, fixed))


@pytest.mark.parametrize("form", ["feed", "embed"])
def test_a_yaml_that_asks_the_segmenter_something_else_joins_the_run_of_that_segmenter(tmp_path, form):
    for name in ("MRCA_R50", f"MRCA_R50_{form}", "MRCA_R50"):
        claim_run(load_config(str(REPOSITORY / f"configs/MRCA/{name}.yaml"), ["OUTPUT_DIR", str(tmp_path)]))


@pytest.mark.parametrize("first", [0, 1])
def test_stage_1_needs_no_word_of_the_training_images_and_training_holds_to_its_own(tmp_path, first):
    training, feed = (
        settings(tmp_path),
        settings(tmp_path, "INPUT.USE_COPY_METHOD", "none", "MODEL.ACTIVE_TEST_EVERY", "2"),
    )
    for trains in [bool(first), not first, True]:
        claim_run(training if trains else feed, trains=trains)
    assert "USE_COPY_METHOD: syn_copy" in (tmp_path / "run.yaml").read_text()
    with pytest.raises(UserError, match=r"INPUT\.USE_COPY_METHOD 'syn_copy', not 'none' .and 1 more."):
        open_run(feed)
    with pytest.raises(UserError, match=r"INPUT\.FORMAT"):
        open_run(settings(tmp_path, "INPUT.FORMAT", "BGR"), trains=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  SEED: 0\n", "", "a run with SEED None, not 0"),
        ("  SEED: 0\n", "  SEED: 0\n  OLD: 1\n", "a run with OLD 1, not None"),
        ("settings:", "others:", r"run\.yaml does not hold"),
        ("  SEED: 0\n", "  1: 0\n", r"run\.yaml does not hold"),
        ("versions:", "more:", r"run\.yaml does not hold"),
        ("SEED: 0", "SEED: \0", r"run\.yaml is not valid YAML"),
    ],
)
def test_a_run_yaml_with_more_or_fewer_lines_or_cut_off_is_refused(tmp_path, old, new, message):
    cfg = settings(tmp_path)
    claim_run(cfg)
    path = tmp_path / "run.yaml"
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new))
    with pytest.raises(UserError, match=message):
        open_run(cfg)


def test_another_setting_is_refused_with_both_values(tmp_path):
    claim_run(settings(tmp_path))
    said, changed = r"belongs to a run with SOLVER\.BASE_LR 0\.0004, not 0\.001", ["SOLVER.BASE_LR", "0.001"]
    with pytest.raises(UserError, match=f"{said}: choose"):
        open_run(settings(tmp_path, *changed))
    with pytest.raises(UserError, match=rf"{said} \(and 2 more\): choose"):
        open_run(settings(tmp_path, "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.WARMUP_ITERS", "7", *changed))


def test_a_run_says_of_which_versions_its_numbers_are(tmp_path, monkeypatch):
    names = ["torch", "torchvision", "timm", "diffusers", "transformers", "numpy", "opencv-python-headless"]
    monkeypatch.setattr(run.metadata, "version", "of {}".format)
    claim_run(settings(tmp_path))
    found = yaml.safe_load((tmp_path / "run.yaml").read_text())["versions"]
    expected = {name: f"of {name}" for name in [*names, "onnxruntime"]}
    assert found == expected | {"python": platform.python_version()}


def test_a_run_folder_is_claimed_when_something_is_made_not_when_it_is_looked_at(tmp_path):
    cfg = settings(tmp_path / "run")
    assert open_run(cfg, "train", "pool/raw").root == str(tmp_path / "run")
    assert run.run_layout(load_config(CONFIG, ["OUTPUT_DIR", "s3://bucket/run"])).root == "s3://bucket/run"
    assert not (tmp_path / "run").exists()
    of_the_yaml = load_config(CONFIG)
    assert run.run_layout(of_the_yaml).root == str(REPOSITORY / of_the_yaml.OUTPUT_DIR)
    claim_run(cfg)
    with pytest.raises(UserError, match="SEED 0, not 1"):
        claim_run(settings(tmp_path / "run", "SEED", "1"))


def test_a_run_that_is_to_become_longer_hears_why_not_and_what_instead(tmp_path):
    claim_run(settings(tmp_path))
    with pytest.raises(
        UserError, match=r"MAX_ITER 300, not 400 .*one cosine.* MODEL\.WEIGHTS the last .*POOL_PATH"
    ):
        open_run(settings(tmp_path, "SOLVER.MAX_ITER", "400", "SOLVER.BASE_LR", "0.001"))


@pytest.mark.parametrize(("iterations", "rounds"), [(300, 3), (301, 4), (299, 3), (100, 1), (50, 1)])
def test_the_last_round_may_be_short(tmp_path, iterations, rounds):
    cfg = settings(tmp_path, "SOLVER.MAX_ITER", str(iterations))
    assert num_rounds(cfg) == rounds and round_iterations(cfg) == 100
    alone = settings(tmp_path, "SOLVER.MAX_ITER", str(iterations), "INPUT.INST_POOL_FEED", "False")
    assert round_iterations(alone) == iterations


@pytest.mark.parametrize(("key", "feed"), [("ROUND_ITERS", "True"), ("MAX_ITER", "False")])
def test_a_round_of_no_iterations_is_refused(tmp_path, key, feed):
    cfg = settings(tmp_path, f"SOLVER.{key}", "0", "INPUT.INST_POOL_FEED", feed)
    for asked in (num_rounds, round_iterations):
        with pytest.raises(UserError, match=rf"SOLVER\.{key} is 0"):
            asked(cfg)
    assert num_rounds(settings(tmp_path, f"SOLVER.{key}", "1")) == (300 if key == "ROUND_ITERS" else 1)


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ("", range(0, 3)),
        ("--round 2", range(0, 2)),
        ("--st_rd 1 --round 2", range(1, 2)),
        ("--st_rd 1 --round 10", range(1, 3)),
        ("--st_rd 1 --num-rounds 1", range(1, 2)),
        ("--num-rounds 9", range(0, 3)),
        ("--st_rd 1 --round 1", "--round 1 stops before --st-rd 1"),
        ("--st_rd 3", "--st-rd 3: the schedule has the rounds 0 to 2"),
        ("--st_rd -1", "--st-rd -1: the schedule"),
    ],
)
def test_round_is_the_end_as_in_the_release_and_num_rounds_the_number(tmp_path, options, rounds):
    add_round_arguments(parser := argparse.ArgumentParser())
    with pytest.raises(SystemExit):
        parser.parse_args("--round 2 --num-rounds 1".split())
    args, cfg = parser.parse_args(options.split()), settings(tmp_path)
    if isinstance(rounds, range):
        assert chosen_rounds(args, cfg) == rounds
    else:
        with pytest.raises(UserError, match=rounds):
            chosen_rounds(args, cfg)
