import argparse
import json
import re

import pytest
import yaml

from exchange import files
from exchange.config import (
    REPOSITORY,
    add_config_arguments,
    choose,
    config_of_text,
    find_config,
    flatten,
    from_repository,
    limits,
    load_config,
    model_source,
)
from exchange.errors import UserError
from exchange.run import claim_run, open_run

MULTIPLYING = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_yaml_builds_on_its_base_and_the_command_line_has_the_last_word(tmp_path):
    write(tmp_path / "base.yaml", {"SOLVER": {"MAX_ITER": 7, "IMS_PER_BATCH": 2}, "SEED": 2})
    write(tmp_path / "second.yaml", {"SOLVER": {"MAX_ITER": 9, "IMS_PER_BATCH": 3}})
    path = write(tmp_path / "x.yaml", {"_BASE_": ["base.yaml", "second.yaml"], "SOLVER": {"MAX_ITER": 8}})
    cfg = load_config(path, ["SOLVER.BASE_LR", "1e-3", "DATASETS.TRAIN", "('a','b')"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SEED) == (8, 3, 0.001, 2)
    assert cfg.DATASETS.TRAIN == ["a", "b"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.WEIGHTS", "", ""),
        ("MODEL.WEIGHTS", "''", ""),
        ("SEGMENTER.CLIP_REVISION", "1234567", "1234567"),
        ("GENERATOR.MODEL", "[a]", "[a]"),
        ("SEGMENTER.FOREGROUND_REVISION", "1234567", ["1234567"]),
        ("SEGMENTER.FOREGROUND_REVISION", "'1234567'", ["1234567"]),
        ("SEGMENTER.FOREGROUND_REVISION", "[a, b]", ["a", "b"]),
        ("OUTPUT_DIR", "2026", "{}/2026"),
        ("OUTPUT_DIR", "./autotest/auto", "{}/autotest/x"),
        ("OUTPUT_DIR", "s3://bucket/run", "s3://bucket/run"),
        ("DATASETS.CUSTOM", "[[a, b.json, /c]]", [["a", "{}/b.json", "/c"]]),
        ("INPUT.SCALE_RANGE", "[0.5, 1]", [0.5, 1.0]),
        ("GENERATOR.GUIDANCE_SIGMAS", "[0, .inf]", [0.0, float("inf")]),
    ],
)
def test_a_value_on_the_command_line_is_of_the_type_of_its_key_and_relative_to_the_working_directory(
    tmp_path, monkeypatch, key, value, expected
):
    monkeypatch.chdir(tmp_path)
    filled = json.loads(json.dumps(expected).replace("{}", str(tmp_path)))
    assert dict(flatten(load_config(write(tmp_path / "x.yaml", {}), [key, value])))[key] == filled


def test_a_data_set_is_beside_the_yaml_that_names_it_also_where_another_builds_on_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    entries = [["a", "a.json", "images"], ["b", "/b.json", "/images"], ["c", "~/c.json", "~/images"]]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/base.yaml", {"DATASETS": {"CUSTOM": entries}})
    write(tmp_path / "data/next.yaml", {"_BASE_": "base.yaml"})
    path = write(tmp_path / "x.yaml", {"_BASE_": "~/data/next.yaml"})
    beside = ["a", str(tmp_path / "data/a.json"), str(tmp_path / "data/images")]
    at_home = ["c", str(tmp_path / "c.json"), str(tmp_path / "images")]
    assert load_config(path).DATASETS.CUSTOM == [beside, entries[1], at_home]


def test_what_begins_with_a_tilde_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "x.yaml", {"OUTPUT_DIR": "~/mine/auto", "MODEL": {"WEIGHTS": "~/w.pth"}})
    cfg = load_config(path)
    assert from_repository(cfg.OUTPUT_DIR) == str(tmp_path / "mine/x")
    assert from_repository(cfg.MODEL.WEIGHTS) == str(tmp_path / "w.pth")
    assert load_config(path, ["OUTPUT_DIR", "~/other"]).OUTPUT_DIR == str(tmp_path / "other")
    assert [model_source(f"~/{name}") for name in ("x.yaml", "", "no")] == [path, str(tmp_path), "~/no"]


def test_a_yaml_anywhere_builds_on_one_of_the_project_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.yaml", {"_BASE_": "configs/digits/MRCA_digits.yaml"})
    assert load_config(path).SOLVER.ROUND_ITERS == 100
    assert find_config("x.yaml") == path  # for processes in another folder
    (tmp_path / "configs/digits").mkdir(parents=True)
    own = write(tmp_path / "configs/digits/MRCA_digits.yaml", {})
    assert find_config("configs/digits/MRCA_digits.yaml") == own


def test_a_command_takes_the_project_s_configuration_unless_it_is_given_one():
    add_config_arguments(parser := argparse.ArgumentParser())
    said = [parser.parse_args(words).config for words in ([], ["--config-file", "x"], ["--config", "x"])]
    assert said == [str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), "x", "x"]


def test_tuples_as_detectron2_writes_them_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("DATASETS:\n  TRAIN: '(\"lvis_v1_train\",) '\n")
    assert load_config(str(tmp_path / "x.yaml")).DATASETS.TRAIN == ["lvis_v1_train"]


def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(tmp_path):
    path = write(tmp_path / "x.yaml", {"SOLVER": {"BASE_LRR": 1.0}})
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LRR.*did you mean SOLVER\.BASE_LR\?"):
        load_config(path)


def test_a_key_of_the_detectron2_family_without_effect_is_a_warning_that_names_it(tmp_path, caplog):
    load_config(write(tmp_path / "x.yaml", {"MODEL": {"DETR": {"NHEADS": 16}}}))
    assert "MODEL.DETR.NHEADS" in caplog.text


def test_a_value_of_the_wrong_type_is_an_error_that_names_the_key(tmp_path):
    with pytest.raises(UserError, match=r"SOLVER\.MAX_ITER.*int"):
        load_config(write(tmp_path / "x.yaml", {"SOLVER": {"MAX_ITER": "many"}}))
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR the value 'nan': it takes a float"):
        load_config(write(tmp_path / "x.yaml", {}), ["SOLVER.BASE_LR", "nan"])
    with pytest.raises(UserError, match=r"GENERATOR\.MODELS the value 'a/b': it takes a list"):
        load_config(write(tmp_path / "x.yaml", {}), ["GENERATOR.MODELS", "a/b"])
    with pytest.raises(UserError, match="'SEED' stands alone"):
        load_config(str(tmp_path / "x.yaml"), ["SEED"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "-.inf"),
        ("SEGMENTER.AREA_SHARE", "[0.0, .inf]"),
        ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", "[[1.0, 1.0, .inf, 1.0]]"),
    ],
)
def test_numbers_are_finite_but_for_those_that_have_no_end_anyway(key, value, tmp_path):
    path = write(tmp_path / "x.yaml", {})
    assert load_config(path, ["GENERATOR.GUIDANCE_SIGMAS", "[1.0, .inf]"]).GENERATOR.GUIDANCE_SIGMAS[1] > 1e9
    with pytest.raises(UserError, match=rf"{key} the value .*inf.*: it takes finite numbers"):
        load_config(path, [key, value])


def test_a_range_is_two_numbers_the_smaller_one_first(tmp_path):
    path, key = write(tmp_path / "x.yaml", {}), "INPUT.INST_POOL_SIZE_RANGE"
    assert limits(load_config(path, [key, "[0.5, 0.5]"]), key) == (0.5, 0.5)
    for value in ("[0.5]", "[0.5, 0.4]", "[0.1, 0.2, 0.3]"):
        with pytest.raises(
            UserError, match=rf"^{key} is \[.*\]: it takes two numbers, the smaller one first$"
        ):
            limits(load_config(path, [key, value]), key)


def test_a_missing_file_a_missing_base_and_broken_yaml_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(UserError, match="base.yaml"):
        load_config(write(tmp_path / "x.yaml", {"_BASE_": "base.yaml"}))
    (tmp_path / "y.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"y\.yaml is not valid YAML"):
        load_config(str(tmp_path / "y.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SOLVER: {MAX_ITER: 5}\n# \xff", "not valid YAML"),
        (b"SEED: \x07", "not valid YAML"),
        (b"SOLVER:\n\tMAX_ITER: 5", "cannot start any token.* line 2, column 1"),
        (b"SOLVER: [1\nSEED: 2", r"did not find expected ',' or '\]'.* line 2, column 5"),
        # from 0.2.6 on libyaml says of most of these that they exceed the depth that it takes
        *((opening * (60_000 // len(opening)), "deeper than 64|depth") for opening in (b"[", b"- ", b"? ", b"[a: ")),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b"[" * 64 + b"]" * 64, "holds a list"),
        (b"OUTPUT_DIR: 2026-01-01", "quotation marks"),
        (b"2026-01-01: 1", "quotation marks"),
        (b'OUTPUT_DIR: "\\ud800"', "not valid YAML"),
        (b'OUTPUT_DIR: "\\0"', "zero byte"),
        (b"SOLVER: {BASE_LR: .nan}", "neither number"),
        (b"SOLVER: {MAX_ITER: 9223372036854775808}", "64 bits"),
        (b"SEED: " + b"1" * (1 << 16), "longer than"),
        (b"SEED: !!timestamp x", "not valid YAML"),
        (b"SEED: !!bool x", "not valid YAML"),
        (b"SEED: !!int ''", "not valid YAML"),
        (b"SEED: !!int x", "not valid YAML"),
        (b"SEED: " + b"1:" * 200 + b"1.5", "not valid YAML"),
        (b"A" * 600 + b": 1", "sets A{80}, which is no setting"),
        (b"- a", "holds a list"),
        (b"a text", "holds a str"),
        (b"SOLVER: 3", "SOLVER a value: it is a group"),
        (b"SOLVR: {}", "SOLVR, which is no setting"),
        (b"SOLVER: {MAX_ITER: {A: 1}}", r"SOLVER\.MAX_ITER\.A, which is no setting"),
        (b"SOLVER: {BASE_LR: True}", r"BASE_LR the value True: it takes a float"),
        (b"SOLVER: {BASE_LR: 1" + b"0" * 400 + b"}", "64 bits"),
        (b"MODEL: {PIXEL_MEAN: [a, 1, 2]}", "a list of float"),
        (b"MODEL: {PIXEL_MEAN: '1'}", "a list of float"),
        (b"_BASE_: null", "builds on None"),
        (b"_BASE_: .", "builds on '.'"),
        (b"_BASE_: [[x.yaml]]", "which is no file"),
        (b"_BASE_: ~nobody/x.yaml", "which is no file"),
        (b"_BASE_: x.yaml", "builds on itself"),
        (b"_BASE_: ./x.yaml", "builds on itself"),
        (b"_BASE_: list.yaml", "list.yaml holds a list"),
        (b"_BASE_: value.yaml\nSOLVER: {MAX_ITER: 5}", "SOLVER a value: it is a group"),
        (MULTIPLYING.encode(), "aliases repeat"),
        (b"a: &a [*a]", "aliases repeat"),
    ],
)  # fmt: skip
def test_whatever_a_yaml_holds_the_error_is_one_sentence(tmp_path, content, message):
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "value.yaml").write_text("SOLVER: 3")
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_config(str(tmp_path / "x.yaml"))
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir ['{}']", "object/new:os.mkdir ['{}']", "name:os.mkdir", "module:os"]
)
def test_no_yaml_ever_makes_a_python_object(tmp_path, tag):
    tag = "!!python/" + tag.format(tmp_path / "made")
    (tmp_path / "base.yaml").write_text(f"OUTPUT_DIR: {tag}")
    (tmp_path / "x.yaml").write_text("_BASE_: base.yaml")
    for name in ("base.yaml", "x.yaml"):
        with pytest.raises(
            UserError, match=r"base\.yaml is not valid YAML: could not determine a constructor"
        ):
            load_config(str(tmp_path / name))
    cfg = load_config(
        write(tmp_path / "y.yaml", {}), ["GENERATOR.MODEL", tag, "OUTPUT_DIR", str(tmp_path / "run")]
    )
    assert cfg.GENERATOR.MODEL == tag  # a text like any other
    files.write_bytes(str(tmp_path / "run/run.yaml"), f"settings: {tag}\nversions: {{}}".encode())
    with pytest.raises(UserError, match=r"run\.yaml is not valid YAML: could not determine a constructor"):
        open_run(cfg)
    assert not (tmp_path / "made").exists()


def test_numbers_in_a_list_are_read_as_those_of_its_default(tmp_path):
    cfg = load_config(write(tmp_path / "x.yaml", {"INPUT": {"SCALE_RANGE": [1, "1e-4"]}}))
    assert cfg.INPUT.SCALE_RANGE == [1.0, 1e-4] and type(cfg.INPUT.SCALE_RANGE[0]) is float


def test_the_configuration_is_frozen_and_flattens_to_its_keys(tmp_path, caplog):
    (tmp_path / "x.yaml").write_text(f"SEED: {-(1 << 63)}".ljust(1 << 16))  # no smaller, no longer
    cfg = load_config(str(tmp_path / "x.yaml"))
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    assert dict(flatten(cfg))["SOLVER.ROUND_ITERS"] == 9000 and not caplog.messages


THEIRS = {  # as the released configurations of MRCA say it, and of BSGAL
    "base": """
        MODEL: {META_ARCHITECTURE: CustomRCNN, WEIGHTS: models/r50.pkl, ROI_HEADS: {NAME: DeticCascadeROIHeads,
          IOU_THRESHOLDS: [0.6]}, ROI_BOX_CASCADE_HEAD: {IOUS: [0.6, 0.7, 0.8]}, CENTERNET: {NUM_CLASSES: 1203}}
        DATASETS: {TRAIN: '("lvis_v1_train",)', TEST: '("lvis_v1_val",)'}
        SOLVER: {USE_CUSTOM_SOLVER: true, CHECKPOINT_PERIOD: 5000, IMS_PER_BATCH: 64}
        OUTPUT_DIR: ./output/auto
        EVAL_PROPOSAL_AR: false
        VERSION: 2""",
    "mrca": """
        _BASE_: base.yaml
        SOLVER: {CHECKPOINT_PERIOD: 9000, IMS_PER_BATCH: 16}
        INPUT: {INST_POOL: false, INST_POOL_FEED: true, INST_POOL_PATH: /pool, INST_POOL_ROOT: /pool/images,
          INST_POOL_FORMAT: RGBA, USE_COPY_METHOD: syn_copy, USE_INSTABOOST: false, MASK_FORMAT: bitmask,
          CP_METHOD: [basic], ROUND_RESET: true, INIT_ROUND: false, NUM_ROUNDS: 10, LOG_SCP_PARAM: true}
        MODEL: {ROI_BOX_HEAD: {USE_ZEROSHOT_CLS: false}, ACTIVE_MODE: paste_or_ori}""",
    "feed": """
        _BASE_: base.yaml
        SOLVER: {CHECKPOINT_PERIOD: 9000, IMS_PER_BATCH: 16}
        MODEL: {META_ARCHITECTURE: FeedbackRCNN, ROI_HEADS: {NAME: DeticCascadeROIHeadsLogits}}""",
    "bsgal": """
        _BASE_: base.yaml
        SOLVER: {MAX_ITER: 90000, CHECKPOINT_PERIOD: 10000, IMS_PER_BATCH: 16, BASE_LR: 0.0001, MODEL_EMA: 0.999}
        MODEL: {WEIGHTS: models/baseline_R50.pth, ACTIVE_ONLY_GT_TEST: true, ACTIVE_GRAD_COMPARE: true,
          ACTIVE_GRAD_SAVE: true, ACTIVE_GRAD_UPDATE: MOMENTUM0.1, ACTIVE_MODE: paste_only, ONLY_PASTE_SUP: true,
          ACTIVE_SEED: 1, ACTIVE_FORWARD_ONCE: true, ACTIVE_ONCE_MODE: only_paste_-0.05}
        INPUT: {INST_POOL: true, INST_POOL_PATH: pool.json, INST_POOL_FORMAT: RGBA, USE_COPY_METHOD: syn_copy,
          USE_INSTABOOST: false, MASK_FORMAT: bitmask, CP_METHOD: [basic], RANDOM_ROTATE: false,
          INST_POOL_SAMPLE_TYPE: cas_random, TRAIN_SIZE: 640, ACTIVE_SELECT: true}
        TEST: {EVAL_PERIOD: 30000}""",
}


@pytest.fixture
def theirs(tmp_path):
    for name, text in THEIRS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_a_released_yaml_has_its_loss_and_folder_and_one_line_says_what_has_no_effect(theirs, caplog):
    cfg = load_config(str(theirs / "mrca.yaml"))
    assert cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_PER == "foreground" and cfg.OUTPUT_DIR == "./output/mrca"
    (line,) = caplog.messages
    idle = ("INPUT.LOG_SCP_PARAM", "INPUT.INST_POOL_PATH", "INPUT.INST_POOL_ROOT")
    assert sorted(re.findall(r"[A-Z_.]+\.[A-Z_]+", line)) == sorted(idle)
    load_config(str(theirs / "mrca.yaml"), ["INPUT.INST_POOL", "True"])
    assert "INST_POOL_PATH" not in caplog.messages[1]


def test_the_released_feed_yaml_belongs_to_the_run_that_is_trained_by_the_other(theirs):
    for name, trains in (("mrca", True), ("feed", False)):
        cfg = load_config(str(theirs / f"{name}.yaml"), ["OUTPUT_DIR", str(theirs / "run")])
        claim_run(cfg, trains=trains)


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("INPUT.USE_INSTABOOST", "True", "False"),
        ("MODEL.WITH_CAPTION", "True", "False"),
        ("WITH_IMAGE_LABELS", "True", "False"),
        ("DATALOADER.DATASET_ANN", "('box', 'image')", r"\['box', 'box'\]"),
    ],
)
def test_a_key_that_would_teach_something_else_is_refused_and_says_how_to_switch_it_off(
    theirs, key, value, instead
):
    sentence = rf"sets {key} to .{{4,18}}, which this .*leave it out or set it to {instead}"
    with pytest.raises(UserError, match=sentence):
        load_config(str(theirs / "mrca.yaml"), [key, value])
    load_config(str(theirs / "mrca.yaml"), ["DATALOADER.DATASET_ANN", "('box', 'box')"])
    with pytest.raises(UserError, match=r"sets MODEL\.WITH_CAPTION to True \(and 1 more such\), which"):
        load_config(str(theirs / "mrca.yaml"), ["MODEL.WITH_CAPTION", "True", "WITH_IMAGE_LABELS", "True"])


def test_bsgals_released_yaml_asks_for_what_its_configuration_here_does(theirs, caplog):
    cfg = load_config(str(theirs / "bsgal.yaml"))
    (line,) = caplog.messages
    assert re.findall(r"[A-Z_]+\.[A-Z_.]+", line) == ["MODEL.ONLY_PASTE_SUP", "MODEL.ACTIVE_SEED"]
    ours = dict(flatten(load_config(str(REPOSITORY / "configs/baselines/BSGAL_R50.yaml"))))
    selecting = [key for key in ours if ".ACTIVE_" in key]
    assert len(selecting) == 12 and ours["INPUT.ACTIVE_SELECT"] is True
    theirs_ = dict(flatten(cfg))
    for key in (*selecting, "SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.MODEL_EMA", "MODEL.WEIGHTS"):
        assert theirs_[key] == ours[key], key


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("MODEL.ACTIVE_GRAD_NORM", "False", "True"),
        ("MODEL.ACTIVE_TEST", "random", "'select'"),
        ("MODEL.ACTIVE_TEST_INS", "all", "'one'"),
        ("MODEL.ACTIVE_LOSS", "cls_stage0", "'cls'"),
    ],
)
def test_a_selection_that_decides_otherwise_is_refused_and_only_told_of_where_nothing_is_selected(
    theirs, caplog, key, value, instead
):
    path = str(theirs / "bsgal.yaml")
    with pytest.raises(UserError, match=rf"sets {key} to .*leave it out or set it to {instead}"):
        load_config(path, [key, value])
    load_config(path, [key, value, "INPUT.ACTIVE_SELECT", "False"])
    assert key in caplog.messages[-1]


def test_a_value_is_one_of_its_choices_and_a_text_that_is_no_table_holds_no_settings(tmp_path):
    cfg = load_config(write(tmp_path / "x.yaml", {}), ["SEED", "3"])
    assert choose(cfg, "SEED", {3: "three"}) == "three"
    with pytest.raises(UserError, match="^SEED is 3, which does not exist: choose from 4, 5$"):
        choose(cfg, "SEED", {4: "four", 5: "five"})
    of_text = config_of_text("SEED: 4\nSOLVER: {MAX_ITER: 5}", "x.pth", ["SEED", "3"])
    assert (of_text.SEED, of_text.SOLVER.MAX_ITER) == (3, 5)
    with pytest.raises(UserError, match="^x.pth holds no settings: take another file$"):
        config_of_text("[1]", "x.pth")


def test_a_key_is_either_live_or_without_effect():
    live = {key for key, _ in flatten(load_config(str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml")))}
    kinds = yaml.safe_load((REPOSITORY / "exchange/foreign_keys.yaml").read_text())
    assert list(kinds) == ["refused", "selecting", "ignored"]
    keys = [*live, *(key for kind in kinds.values() for key in kind)]
    assert len(set(keys)) == len(keys)
