import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch

from diSegmenter import segmentAndFilter
from diSegmenter.annotate import MaskCleaner
from diSegmenter.cut_out import BestOf
from diSegmenter.filter import InstanceFilter
from diSegmenter.onnx_network import OnnxReading
from diSegmenter.pool.prune import prune_dropped
from exchange import files
from exchange.annotations import read_annotations
from exchange.config import load_config
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_index import PoolIndex
from exchange.seconds import read_seconds
from exchange.shards import Shard
from tests.diSegmenter.conftest import CATEGORIES, generate, write_settings
from tests.diSegmenter.small_onnx import save_dark

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path, foreground_folder, clip_folder):
    return write_settings(tmp_path, foreground_folder, clip_folder, CLIP_THRESHOLD=-100.0, BATCH_SIZE=4)


def test_the_script_runs_from_its_own_folder_and_from_the_top(config, layout, python):
    for round_ in (0, 1):
        generate(layout, round_, 6)
    inside, above = "segmentAndFilter.py", "diSegmenter/segmentAndFilter.py"
    for folder, script, extra, kept in (
        (REPOSITORY / "diSegmenter", inside, [], 12),
        (REPOSITORY, above, ["--refilter", "101"], 0),
    ):
        command = [python, script, "--config", config, *extra]
        result = subprocess.run(command, cwd=folder, text=True, capture_output=True)
        assert result.returncode == 0, result.stderr
        assert len(read_annotations(layout.annotations(1)).object_images) == kept
    assert files.exists(layout.annotations_done(1))
    pictures = ["generated_rd00.png", "generated_rd01.png", "report_rd00.html", "report_rd01.html"]
    assert files.list_dir(layout.pictures_dir) == pictures


def test_what_cannot_go_on_ends_with_exit_code_2_and_one_line(config, layout):
    script = str(REPOSITORY / "diSegmenter" / "segmentAndFilter.py")
    command = [sys.executable, script, "--config", config, "SEGMENTER.CLIP_TRESHOLD", "3"]
    result = subprocess.run(command, text=True, capture_output=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "SEGMENTER.CLIP_THRESHOLD" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BATCH_SIZE", "0", "is 0: it is 1 or more"),
        ("WORKERS", "0", "is 0: it is 1 or more"),
        ("INPUT_SIZE", "0", "is 0: it is 1 or more"),
        ("AREA_SHARE", "[0.5]", r"is \[0\.5\]: it takes two numbers"),
        ("CLIP_PROMPT", "a photo of {name}", "is 'a photo of {name}', which .* put {} where"),
        ("CLIP_PROMPT", "a photo of {", "is 'a photo of {', which .* put {} where"),
        ("CLIP_PROMPT", "a photo of {0.name}", "is 'a photo of {0.name}', which .* put {} where"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(call, config, layout, key, value, message):
    generate(layout, 0, 1)
    with pytest.raises(UserError, match=f"SEGMENTER.{key} {message}"):
        call(segmentAndFilter, "--config", config, f"SEGMENTER.{key}", value)


def test_a_file_that_is_no_onnx_network_is_named_with_its_key(call, config, layout):
    onnx = ["SEGMENTER.FOREGROUND", "onnx", "SEGMENTER.FOREGROUND_MODEL", config]  # a YAML is none
    with pytest.raises(UserError, match=r"SEGMENTER\.FOREGROUND_MODEL"):
        call(segmentAndFilter, "--config", config, *onnx)


def test_a_round_is_cut_out_by_the_onnx_form_of_a_network_as_by_torch(call, config, layout, tmp_path):
    other, network = RunLayout(str(tmp_path / "onnx")), save_dark(tmp_path / "dark.onnx", (1, 3, 32, 32))
    onnx = ["OUTPUT_DIR", other.root, "SEGMENTER.FOREGROUND", "onnx", "SEGMENTER.FOREGROUND_MODEL", network]
    for run, settings in ((layout, []), (other, [*onnx, "SEGMENTER.TRUST_REMOTE_CODE", "False"])):
        generate(run, 0, 6)
        call(segmentAndFilter, "--config", config, "--round", "1", *settings)
    assert set(PoolIndex(other, [0], dropped_too=True).column("foreground")) == {network}
    for name in files.list_dir(layout.segmented("")):
        expected, mask = (cv2.imread(run.segmented(name), 0).astype(int) for run in (layout, other))
        assert expected.max() > 250 and np.abs(mask - expected).max() <= 1


def test_an_extra_category_is_cut_out_and_in_the_pool_as_any(call, config, layout, tmp_path):
    files.write_json(
        str(tmp_path / "train.json"), {"images": [], "annotations": [], "categories": CATEGORIES[:1]}
    )
    files.write_json(str(tmp_path / "extra.json"), CATEGORIES[1:])
    generate(layout, 0, 6)
    extra = ["DATASETS.EXTRA_CATEGORIES", str(tmp_path / "extra.json")]
    call(segmentAndFilter, "--config", config, "--round", "1", *extra)
    index = PoolIndex(layout, [0])
    assert index.category_ids.tolist().count(7) == 3
    assert np.isfinite(index.column("clip_white")).all()
    assert read_annotations(layout.pool_categories()).category_names == {3: "red disc", 7: "blue_disc"}


def test_rounds_and_shares_are_chosen_on_the_command_line(call, config, layout):
    generate(layout, 0, 9)
    call(segmentAndFilter, "--config", config, "--round", "1", "--share", "0", "--num-shares", "2")
    assert 0 < len(files.list_dir(layout.segmented(""))) < 9
    assert not files.exists(layout.annotations_done(0))
    call(segmentAndFilter, "--config", config, "--round", "1", "--share", "1", "--num-shares", "2")
    assert len(read_annotations(layout.annotations(0)).object_images) == 9
    assert not files.exists(layout.annotations_done(1))
    with pytest.raises(UserError, match="--share 2"):
        call(segmentAndFilter, "--config", config, "--share", "2", "--num-shares", "2")


def test_div_is_the_number_of_stage_1_s_shards_as_in_the_release(call, config, layout):
    generate(layout, 0, 3)
    with pytest.raises(UserError, match="round 0 in 1 shards, not in 3"):
        call(segmentAndFilter, "--config-file", config, "--round", "1", "--div", "3")
    call(segmentAndFilter, "--config-file", config, "--round", "1", "--div", "-1")
    assert files.exists(layout.annotations_done(0))


def test_the_latest_round_alone_without_an_annotation_file_is_a_choice(call, config, layout):
    for round_ in (0, 1):
        generate(layout, round_, 4)
    options = ["--config", config, "--num-rounds", "1", "SEGMENTER.LATEST_ROUND_ONLY", "True"]
    call(segmentAndFilter, *options, "--st_rd", "1")
    assert {a["round"] for a in files.read_json(layout.annotations(1))["annotations"]} == {1}
    call(segmentAndFilter, *options, "SEGMENTER.ANNOTATION_FILE_LIMIT", "0")
    assert files.exists(layout.annotations_done(0)) and not files.exists(layout.annotations(0))


def test_every_key_of_the_segmenter_reaches_what_it_is_for(monkeypatch, config, layout):
    built = {name: Mock() for name in ("RoundSegmenter", "load_foreground", "load_clip_scorer", "OneModel")}
    monkeypatch.setattr("diSegmenter.cut_out.InTurn", lambda model: ("in turn", model))
    monkeypatch.setattr("diSegmenter.build_similarity.build_similarity", lambda *given: given)
    monkeypatch.setattr("diSegmenter.judge.load_judge", lambda *given: given)
    monkeypatch.setattr("diSegmenter.segment_round.RoundSegmenter", built["RoundSegmenter"])
    monkeypatch.setattr("diSegmenter.foreground.load_foreground", built["load_foreground"])
    monkeypatch.setattr("diSegmenter.cut_out.OneModel", built["OneModel"])
    monkeypatch.setattr("diSegmenter.clip_score.load_clip_scorer", built["load_clip_scorer"])
    values = {
        "FOREGROUND": "sam2", "FOREGROUND_MODEL": "f", "FOREGROUND_REVISION": "r", "INPUT_SIZE": 48,
        "CLIP_MODEL": "c", "CLIP_REVISION": "s", "CLIP_PROMPT": "one {}", "ALPHA_FLOOR": 9,
        "LARGEST_COMPONENT": False, "BATCH_SIZE": 3, "WORKERS": 2, "AREA_SHARE": [0.1, 0.8],
        "MAX_OBJECTS": 2, "DROP_TOUCHING_BORDER": True, "CLIP_TOLERANCE": 1.5, "ONNX_MEAN": [0.5, 0.6, 0.7],
        "ONNX_STD": [1.0, 2.0, 3.0], "ONNX_OUTPUT": -2, "ONNX_RESCALE": "minmax",
        "SIMILARITY_MODEL": "m", "SIMILARITY_THRESHOLD": 0.7, "JUDGE": "j", "JUDGE_REVISION": "t",
        "JUDGE_PROMPT": "is it one {}", "JUDGE_THRESHOLD": 0.8,
    }  # fmt: skip
    cfg = load_config(config, [text for key, v in values.items() for text in (f"SEGMENTER.{key}", str(v))])
    dataset = read_annotations(cfg.DATASETS.CUSTOM[0][1])
    assert not files.exists(layout.settings_file)
    segmentAndFilter.build_segmenter(cfg, layout, dataset, "images", Shard(1, 4), 0)
    assert files.exists(layout.settings_file)  # since the pool got the features of real objects
    assert built["load_foreground"].call_args.args[:5] == ("sam2", "f", "r", True, 48)
    reading = OnnxReading([0.5, 0.6, 0.7], [1.0, 2.0, 3.0], -2, ["minmax"])
    assert built["load_foreground"].call_args.args[6] == reading
    texts = {3: "one red disc", 7: "one blue_disc"}
    assert built["load_clip_scorer"].call_args.args[:3] == ("c", "s", texts)
    foreground, scorer = (("in turn", built[f"load_{n}"].return_value) for n in ("foreground", "clip_scorer"))
    assert built["OneModel"].call_args.args == ("f", foreground, MaskCleaner(9, False), scorer)
    questions = {3: "is it one red disc", 7: "is it one blue disc"}
    measures = {
        "similarity": ("in turn", (cfg, layout, dataset, "images", torch.device("cpu"))),
        "judge": ("in turn", ("j", "t", questions, torch.device("cpu"))),
    }
    expected = (built["OneModel"].return_value, 3, 2, Shard(1, 4), measures)
    assert built["RoundSegmenter"].call_args.args[1:] == expected
    assert segmentAndFilter.build_filter(cfg, 23.0) == InstanceFilter(
        23.0, (0.1, 0.8), 2, True, 1.5, 0.7, 0.8
    )
    for trusted in (False, True):
        cfg = load_config(config, ["SEGMENTER.TRUST_REMOTE_CODE", str(trusted)])
        segmentAndFilter.build_segmenter(cfg, layout, dataset, "images", Shard(), 0)
        assert built["load_foreground"].call_args.args[3] is trusted
    off = load_config(config, ["SEGMENTER.SIMILARITY_THRESHOLD", "0.7", "SEGMENTER.JUDGE_THRESHOLD", "0.8"])
    assert segmentAndFilter.build_filter(off, 23.0) == InstanceFilter(23.0, (0.0, 1.1), 0, False)
    cfg = load_config(config, ["SEGMENTER.FOREGROUND", "alpha"])
    segmentAndFilter.build_segmenter(cfg, layout, dataset, "images", Shard(), 0)
    assert built["OneModel"].call_args.args[0] == "alpha"
    assert built["RoundSegmenter"].call_args.args[1] == built["OneModel"].return_value
    cfg = load_config(config, ["SEGMENTER.FOREGROUND", "[alpha, sam2]"])
    segmentAndFilter.build_segmenter(cfg, layout, dataset, "images", Shard(), 0)
    assert isinstance(built["RoundSegmenter"].call_args.args[1], BestOf)


def test_of_several_models_each_gets_its_name_and_clip_chooses(call, config, layout, foreground_folder):
    several = [
        "SEGMENTER.FOREGROUND",
        "[alpha, matting]",
        "SEGMENTER.FOREGROUND_MODEL",
        f"['', {foreground_folder}]",
    ]
    generate(layout, 0, 4)
    call(segmentAndFilter, "--config", config, "--round", "1", *several)
    chosen = PoolIndex(layout, [0], dropped_too=True)
    assert set(chosen.column("foreground")) <= {"alpha", foreground_folder}
    cfg = load_config(
        config, ["SEGMENTER.FOREGROUND", "[matting, sam2]", "SEGMENTER.FOREGROUND_MODEL", "[a, b, c]"]
    )
    with pytest.raises(UserError, match="names 2 models and SEGMENTER.FOREGROUND_MODEL has 3 entries"):
        segmentAndFilter.chosen_foregrounds(cfg)
    with pytest.raises(UserError, match="names 0 models"):
        segmentAndFilter.chosen_foregrounds(load_config(config, ["SEGMENTER.FOREGROUND", "[]"]))
    cfg = load_config(
        config, ["SEGMENTER.FOREGROUND", "[sam2, matting]", "SEGMENTER.FOREGROUND_MODEL", "[a, b]"]
    )
    assert segmentAndFilter.chosen_foregrounds(cfg) == [("sam2", "a", "main"), ("matting", "b", "main")]


def test_a_second_call_leaves_every_file_as_it_is(call, config, layout):
    generate(layout, 0, 5)
    call(segmentAndFilter, "--config", config, "--round", "1")
    assert "MODEL.ROI_HEADS.NUM_CLASSES: 2\n" in Path(layout.settings_file).read_text()  # as the data set has
    written = [path for path in Path(layout.root).rglob("*.*") if path.parent.name not in ("logs", "locks")]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in written}
    call(segmentAndFilter, "--config", config, "--round", "1")
    written = [path for path in Path(layout.root).rglob("*.*") if path.parent.name not in ("logs", "locks")]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in written} == before


def test_other_bounds_need_no_model(monkeypatch, config, layout, call):
    for round_ in (0, 1):
        generate(layout, round_, 6)
    call(segmentAndFilter, "--config", config)
    works = {"waiting (stage 2)", "cutting out", "filtering"}
    assert {round_: set(of) for round_, of in read_seconds(layout).items()} == {0: works, 1: works}
    scores = {instance.file: instance.clip_score for instance in PoolIndex(layout, [0, 1])}
    threshold = sorted(scores.values())[5]
    monkeypatch.setattr(segmentAndFilter, "build_segmenter", None)
    call(segmentAndFilter, "--config", config, "--refilter", str(threshold))
    kept = set(read_annotations(layout.annotations(1)).file_names())
    assert kept == {name for name, score in scores.items() if score >= threshold}
    assert 0 < len(kept) < 12
    assert files.read_json(layout.verdicts(0))["settings"]["clip_threshold"] == threshold
    call(segmentAndFilter, "--config", config, "--refilter", "0", "--round", "1")
    assert set(read_annotations(layout.annotations(1)).file_names()) == kept | set(list(scores)[:6])
    small = ["SEGMENTER.AREA_SHARE", "[0.0, 0.001]"]
    call(segmentAndFilter, "--config", config, "--refilter", str(threshold), *small)
    assert set(PoolIndex(layout, [0], dropped_too=True).column("reason")) == {"too large"}
    for key, value in (("SIMILARITY_THRESHOLD", 0.5), ("JUDGE_THRESHOLD", 0.5), ("CLIP_TOLERANCE", 99)):
        small += [f"SEGMENTER.{key}", str(value)]
    small += ["SEGMENTER.MAX_OBJECTS", "9", "SEGMENTER.DROP_TOUCHING_BORDER", "True"]
    call(segmentAndFilter, "--config", config, "--refilter", str(threshold), *small)
    for changed in (
        small,
        ["--refilter", "0", "SEGMENTER.INPUT_SIZE", "48"],
    ):  # which other models would need
        with pytest.raises(UserError, match="belongs to a run with SEGMENTER"):
            call(segmentAndFilter, "--config", config, *changed)


def test_originals_that_a_killed_call_left_go_with_the_next_one(monkeypatch, config, layout, call):
    generate(layout, 0, 5)
    options = ["--config", config, "--round", "1", "SEGMENTER.KEEP_RAW", "False"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(segmentAndFilter, "prune_originals", Mock(side_effect=KeyboardInterrupt))
        call(segmentAndFilter, *options)
    assert files.exists(layout.annotations_done(0)) and files.exists(layout.raw("00_0003_0000.png"))
    for _ in range(2):
        call(segmentAndFilter, *options)
        assert not [name for name in files.list_dir(layout.raw("")) if name.startswith("00")]
        assert not files.list_dir(layout.segmented(""))
    assert len(PoolIndex(layout, [0])) == 5


def test_a_finished_round_that_lost_a_cut_out_is_not_called_finished_while_it_is_mended(
    monkeypatch, config, layout, call
):
    generate(layout, 0, 5)
    call(segmentAndFilter, "--config", config, "--round", "1")
    files.remove(layout.cutout("00_0003_0000.png"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(segmentAndFilter, "judge_round", Mock(side_effect=KeyboardInterrupt))
        call(segmentAndFilter, "--config", config, "--round", "1")
    assert not files.exists(layout.annotations_done(0))


def test_dropped_cut_outs_that_were_pruned_come_back_the_way_that_the_message_says(call, config, layout):
    generate(layout, 0, 6)
    options = ["--config", config, "--round", "1"]
    call(segmentAndFilter, *options)
    call(segmentAndFilter, *options, "--refilter", "101")
    left = files.read_bytes(layout.cutout("00_0003_0000.png"))
    assert prune_dropped(layout, 0) == 6
    call(segmentAndFilter, "--config", config, "--refilter", "101")  # needs none of them, and no round 1
    files.write_bytes(layout.cutout("00_0003_0000.png"), left)
    with pytest.raises(
        UserError, match=f"5 cut-outs of round 0 are gone.* remove {layout.annotations_done(0)} "
    ):
        call(segmentAndFilter, *options, "--refilter", "-100")
    files.remove(layout.annotations_done(0))
    call(segmentAndFilter, *options)
    call(segmentAndFilter, *options, "--refilter", "-100")
    assert len(PoolIndex(layout, [0])) == 6


def test_a_run_is_claimed_with_its_first_image(config, layout):
    listings = [(2, []), (2, generate(layout, 0, 2))]
    claimed = segmentAndFilter.claimed(load_config(config), iter(listings), nullcontext)
    told = [(listing, files.exists(layout.settings_file)) for listing in claimed]
    assert told == [(listings[0], False), (listings[1], True)]


@pytest.mark.parametrize("bound", ["nan", "inf"])
def test_a_bound_that_is_not_finite_is_an_error(call, config, bound):
    with pytest.raises(UserError, match=f"^--refilter {bound}: give a finite number"):
        call(segmentAndFilter, "--config", config, "--refilter", bound)


def test_refiltering_nothing_is_an_error(call, config):
    with pytest.raises(UserError, match="--refilter"):
        call(segmentAndFilter, "--config", config, "--refilter", "3")


def test_a_second_process_at_the_same_share_is_refused_and_one_at_another_is_not(call, config, layout):
    generate(layout, 0, 3)
    with only_one(layout, "segment_1of2"):
        with pytest.raises(UserError, match="is at 'segment_1of2' already"):
            call(segmentAndFilter, "--config", config, "--round", "1", "--share", "1", "--num-shares", "2")
        assert not files.list_dir(layout.pool("segmented"))
        call(segmentAndFilter, "--config", config, "--round", "1", "--share", "0", "--num-shares", "2")
