import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from exchange import files
from exchange.annotations import AnnotationFile, frequency, read_annotations
from exchange.decisions import Decision, write_decisions
from exchange.errors import UserError
from exchange.feedback import Feedback, read_feedback, source_round, write_feedback
from exchange.layout import RunLayout
from exchange.manifest import (
    GeneratedInstance,
    Manifest,
    is_complete,
    read_manifest,
    read_round,
    write_manifest,
)
from exchange.pool_features import add_features
from exchange.pool_index import write_index
from exchange.pool_rank import write_rank
from exchange.seeds import instance_seed
from tests.diSegmenter.conftest import pool_instance

FEEDBACK = Feedback(
    round=2,
    iteration=300,
    checkpoint="train/model_0000299.pth",
    checkpoint_sha256="00",
    dataset="d",
    categories=[1, 5],
    box_ap=[100.0, None],
    mask_ap=[0.0, None],
    drift=[0.5, 0.0],
    mean_box_ap=10.0,
    mean_mask_ap=9.0,
    ap_r=None,
    ap_c=9.0,
    ap_f=None,
    time="2026-01-01T00:00:00",
)


def test_feedback_round_trips_and_is_kept_in_the_history(tmp_path):
    layout = RunLayout(str(tmp_path))
    write_feedback(layout, FEEDBACK)
    assert read_feedback(layout.feedback_file) == FEEDBACK
    assert read_feedback(layout.feedback_history(2)) == FEEDBACK


def test_the_names_of_a_round_s_instances_begin_as_those_of_no_other():
    for round_ in (0, 1, 9, 10, 99, 100):
        prefix = RunLayout.instance_prefix(round_)
        named = {r for r in range(1100) if RunLayout.instance_name(r, 0, 0).startswith(prefix)}
        assert named == {round_}


def test_feedback_is_that_of_the_round_before_or_staler_and_of_the_initial_weights_at_least():
    assert [source_round(round_, 0) for round_ in range(4)] == [-1, 0, 1, 2]
    assert [source_round(round_, 1) for round_ in range(4)] == [-1, -1, 0, 1]


def test_the_file_of_a_round_is_written_last_and_the_copy_shows_the_latest_round(tmp_path, monkeypatch):
    layout, write = RunLayout(str(tmp_path)), files.write_json
    initial, first = (dataclasses.replace(FEEDBACK, round=round_) for round_ in (-1, 0))

    def killed(path, value):
        if path == layout.feedback_history(0):
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_json", killed)
        write_feedback(layout, first)
    assert read_feedback(layout.feedback_file) == first
    write_feedback(layout, first)
    write_feedback(layout, initial)
    assert read_feedback(layout.feedback_file) == first
    assert read_feedback(layout.feedback_history(-1)) == initial


def test_every_round_finds_its_own_files_whatever_their_number(tmp_path):
    layout = RunLayout(str(tmp_path))
    for round_ in (100, 9, 11):
        files.write_bytes(layout.pool_index(round_), b"")
        files.write_bytes(layout.pool_outlines(round_), b"")
        files.write_bytes(layout.manifest(round_, 0, 1), b"")
        files.write_bytes(layout.features(round_, 10 * round_), b"")
        files.write_bytes(layout.decisions(round_, 10**5 * round_), b"")
    files.write_bytes(layout.pool("index/rd12.arrow.5f.tmp"), b"")  # of a writer that was killed
    assert layout.pool_rounds() == [9, 11, 100]
    for round_ in (100, 9, 11):
        assert layout.manifests(round_) == [layout.manifest(round_, 0, 1)]
        assert layout.feature_parts(round_) == [10 * round_]
        assert [*layout.decision_parts(round_)] == [10**5 * round_]
    assert layout.feedback_history(0) != layout.feedback_history(-1)
    assert layout.cutout_name("a.b.png") == "cutouts/a.b.webp"  # an imported pool has names of its own
    assert layout.instance_name(9, 34, 5) == "09_0034_0005.png"


def test_what_runs_that_there_are_hold_is_found_and_of_the_same_form(tmp_path):
    layout = RunLayout(f"{tmp_path}/")
    weights = "s3://elsewhere/model_0000299.pth"
    places = {
        layout.settings_file: "run.yaml",
        layout.scores("val", weights): "train/inference/val/metrics_0000299.json",
        layout.decisions(1, 300): "train/decisions/rd01_0000300.arrow",
        layout.twins(3): "pictures/twins_rd03.png",
        layout.logs_dir: "logs",
        layout.locks_dir: "locks",
        layout.seconds_dir: "seconds",
        layout.report: "report.html",
        layout.feedback_file: "feedback.json",
        layout.feedback_history(-1): "feedback/initial.json",
        layout.feedback_history(0): "feedback/rd00.json",
        layout.raw("a.png"): "pool/raw/a.png",
        layout.segmented("a.png"): "pool/segmented/a.png",
        layout.cutout("a.png"): "pool/cutouts/a.webp",
        layout.manifest(2, 0, 3): "pool/manifests/manifest_rd02_0of3.json",
        layout.pool_index(7): "pool/index/rd07.arrow",
        layout.pool_outlines(7): "pool/index/rd07.outlines.arrow",
        layout.pool_part(7, 2): "pool/index/rd07.parts/000002.arrow",
        layout.pool_part_outlines(7, 2): "pool/index/rd07.parts/000002.outlines.arrow",
        layout.pool_part_done(7, 2): "pool/index/rd07.parts/000002.json",
        layout.pool_categories(): "pool/categories.json",
        layout.dropped_by_hand(): "pool/dropped.json",
        layout.real_features(): "pool/real_features.safetensors",
        layout.rank(0, "clip"): "pool/rank/rd00.clip.arrow",
        layout.rank_done(0, "clip"): "pool/rank/rd00.clip.json",
        layout.features(0, 2): "pool/features/rd00_002.arrow",
        layout.features_made_from(): "pool/features/made_from.json",
        layout.annotations(4): "pool/annotations/rd04.json",
        layout.verdicts(4): "pool/annotations/rd04.filter.json",
        layout.annotations_done(4): "pool/annotations/rd04.done",
    }
    assert list(places) == [f"{tmp_path}/{place}" for place in places.values()]
    write_index(layout, 0, [pool_instance(0, 3, 0)])
    write_decisions(layout, 1, 300, [Decision(299, 0, "a.png", 3, 0.5, -0.05, True)])
    write_rank(layout, 0, "clip", ["a.png"], np.ones(1), {})
    add_features(layout, 0, ["a.png"], np.eye(1))
    texts = ("file", "reason", "model", "prompt", "cutout", "foreground", "instance")
    kinds = dict.fromkeys(texts, "string") | {"bbox": "fixed_size_list<item: int32>[4]", "accepted": "bool"}
    kinds |= dict.fromkeys(("clip_white", "clip_black", "similarity", "judge"), "double")
    kinds |= dict.fromkeys(("value", "score", "threshold"), "double")
    kinds |= dict.fromkeys(("seed", "offset", "length"), "int64") | {"feature": "list<item: halffloat>"}
    kinds["segmentation"] = "list<item: list<item: int32>>"
    of_index = "file round category_id width height bbox area objects clip_white clip_black reason seed model"
    columns = {
        layout.pool_index(0): f"{of_index} prompt cutout offset length foreground similarity judge",
        layout.pool_outlines(0): "segmentation",
        layout.decisions(1, 300): "iteration process instance category_id score threshold accepted",
        layout.rank(0, "clip"): "file value",
        layout.features(0, 0): "file feature",
    }
    for path, names in columns.items():
        schema = pa.ipc.open_file(path).schema
        assert schema.names == names.split() and schema.metadata == {b"format": b"1"}, path
        assert [str(kind) for kind in schema.types] == [kinds.get(name, "int32") for name in schema.names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"drift": [1.0]}, "drift"),
        ({"mask_ap": [1.0, 1.0, 1.0]}, "'mask_ap' must list one value for each of the 2"),
        ({"box_ap": []}, "box_ap"),
        ({"mask_ap": [1.0, "x"]}, "mask_ap"),
        ({"mask_ap": [1.0, -1.0]}, "percentage"),
        ({"box_ap": [101.0, None]}, "percentage"),
        *(({name: 100.5}, "percentage") for name in ("mean_box_ap", "mean_mask_ap", "ap_r", "ap_c", "ap_f")),
        ({"drift": [0.0, -1.0]}, "'drift' is negative"),
        ({"drift": [0.0, 1e308]}, "'drift'"),
        ({"categories": [5, 1]}, "ascending"),
        ({"categories": [1, 1]}, "ascending"),
        ({"categories": [1, 1 << 31]}, "32 bits"),
        ({"categories": [-1, 5]}, "32 bits"),
        ({"round": -2}, "'round'"),
        ({"iteration": -1}, "'iteration'"),
        ({"checkpoint": "\ud800"}, "'checkpoint'"),
    ],
)
def test_feedback_of_another_format_or_inconsistent_is_refused(tmp_path, change, message):
    content = {"format": 1, **dataclasses.asdict(FEEDBACK), **change}
    files.write_json(str(tmp_path / "f.json"), content)
    with pytest.raises(UserError, match=message):
        read_feedback(str(tmp_path / "f.json"))


def make_manifest(shard, complete=True, file="00_0001_0000.png", num_shards=2):
    made = GeneratedInstance(file, 1, 0, 7, "a photo of {}", "a photo of x", False)
    return Manifest(0, shard, num_shards, complete, {1: 4}, [made], 0.0)


_INSTANCE = dataclasses.asdict(make_manifest(0).instances[0])


def test_a_round_is_complete_when_all_its_shards_are(tmp_path):
    layout = RunLayout(str(tmp_path))
    assert not is_complete(read_round(layout, 0))
    write_manifest(layout, make_manifest(0))
    assert layout.manifests(0) == [layout.manifest(0, shard=0, num_shards=2)]
    assert not is_complete(read_round(layout, 0))
    write_manifest(layout, make_manifest(1, complete=False))
    assert not is_complete(read_round(layout, 0))
    write_manifest(layout, whole := make_manifest(1, file="x" * 200))
    known = {}
    assert is_complete(read_round(layout, 0, known))
    assert read_round(layout, 0) == [make_manifest(0), whole]
    files.write_bytes(layout.manifest(0, 1, 2), b"damaged, but known")
    assert read_round(layout, 0, known) == [make_manifest(0), whole]
    assert read_round(layout, 1) == []


def test_the_shards_of_a_round_are_in_the_order_of_their_numbers(tmp_path):
    layout = RunLayout(str(tmp_path))
    for shard in range(11):
        write_manifest(layout, make_manifest(shard, num_shards=11))
    assert [manifest.shard for manifest in read_round(layout, 0)] == list(range(11))


def test_shards_of_different_divisions_are_not_mixed(tmp_path):
    layout = RunLayout(str(tmp_path))
    write_manifest(layout, make_manifest(0))
    write_manifest(layout, make_manifest(0, num_shards=3))
    with pytest.raises(UserError, match="2 and 3 shards"):
        read_round(layout, 0)


@pytest.mark.parametrize(
    "file", ["../../secret.png", "/etc/x", "a\\b.png", "", ".hidden", "..", "x" * 201, "é" * 101]
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path, file):
    layout = RunLayout(str(tmp_path))
    write_manifest(layout, make_manifest(0, file=file))
    with pytest.raises(UserError, match="only plain file names"):
        read_round(layout, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked": {"1": 1e999}}, "not valid JSON"),
        ({"asked": {"1": 1.5}}, "'asked'"),
        ({"asked": {"one": 1}}, "'one'"),
        ({"asked": {"1": -1}}, "negative"),
        ({"asked": {str(1 << 31): 1}}, "32 bits"),
        ({"asked": []}, "'asked' is no dict"),
        ({"instances": {}}, "'instances' is no list"),
        ({"shard": 2}, "out of range"),
        ({"shard": -1}, "out of range"),
        ({"round": -1}, "out of range"),
        ({"seconds": -1.0}, "out of range"),
        ({"format": 2}, "format 2, this version reads 1"),
        ({"instances": [{**_INSTANCE, "model": "\ud800"}]}, "'model'"),
        ({"instances": [{**_INSTANCE, "category_id": 1 << 31}]}, "32 bits"),
        ({"instances": [{**_INSTANCE, "instance": -1}]}, "negative"),
    ],
)
def test_a_manifest_with_values_that_no_generator_writes_is_refused(tmp_path, change, message):
    content = {"format": 1, **dataclasses.asdict(make_manifest(0)), **change}
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_manifest(str(tmp_path / "m.json"))
    (tmp_path / "m.json").write_text(json.dumps(content).replace("Infinity", "1e999"))
    with pytest.raises(UserError):
        read_manifest(str(tmp_path / "m.json"))


def test_annotations_are_sorted_by_category_and_counted(tmp_path):
    content = {
        "images": [{"id": i, "height": i, "width": 4} for i in (3, 1, 2)],
        "annotations": [{"image_id": 1, "category_id": 9, "segmentation": {"size": [1, 4], "counts": [4]}}]
        * 2
        + [{"image_id": 2, "category_id": 3, "segmentation": {"size": [2, 4], "counts": [8]}}],
        "categories": [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}, {"id": 12, "name": "unseen"}],
    }
    files.write_json(str(tmp_path / "a.json"), content)
    annotations = read_annotations(str(tmp_path / "a.json"))
    assert annotations.category_ids.tolist() == [3, 9, 12]
    assert annotations.instance_counts().tolist() == [1, 2, 0]
    assert annotations.image_counts().tolist() == [1, 1, 0]


def test_images_of_each_class_are_counted_in_as_many_as_there_are():
    arrays = {"object_images": [50_000, 50_000, 49_999], "object_classes": [1, 1, 2]}
    arrays = {name: np.array(places, np.int32) for name, places in arrays.items()}
    arrays["categories"] = np.frombuffer(json.dumps([None] * 50_001).encode(), np.uint8)
    assert AnnotationFile("a.json", arrays).image_counts().nonzero()[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("images", {}, "no list 'images'"),
        ("annotations", None, "no list 'annotations'"),
        ("annotations", ..., "no list 'annotations'"),
        ("categories", ..., "no list 'categories'"),
        ("categories", {}, "no list 'categories'"),
        ("annotations", [{"image_id": 1, "category_id": 2}], "category_id 2"),
        ("annotations", [{"image_id": 8, "category_id": 1}], "image_id 8"),
        ("categories", [{"id": 1}], "name"),
        ("images", [{"id": i, "height": 4, "width": 4} for i in (1, 2, 1)], "twice in 'images'"),
        ("images", [{"id": 1, "height": 4, "width": 4}, 5], "record 1 of 'images' is no JSON object"),
        ("categories", [{"id": 1, "name": name} for name in "ab"], "twice in 'categories'"),
    ],
)
def test_what_is_not_lvis_or_coco_is_refused_by_name(tmp_path, part, value, message):
    content = {"images": [{"id": 1, "height": 4, "width": 4}], "annotations": []}
    content |= {"categories": [{"id": 1, "name": "a"}], part: value}
    there = {name: listed for name, listed in content.items() if listed is not ...}
    files.write_json(str(tmp_path / "a.json"), there)
    with pytest.raises(UserError, match=message):
        read_annotations(str(tmp_path / "a.json"))


def test_frequency_groups_are_those_of_lvis():
    assert [frequency(count) for count in (1, 10, 11, 100, 101)] == ["r", "r", "c", "c", "f"]


def test_instance_seeds_depend_on_each_of_their_parts():
    seeds = {
        instance_seed(*key) for key in [(0, 0, 1, 0), (1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 2, 0), (0, 0, 1, 1)]
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A digest written down once: a run that is taken up by a later version goes on with the same seeds.
    assert instance_seed(1, 2, 34, 5) == 5_852_459_161_723_906_929
