import pytest
import yaml

from exchange.config import flatten, load_config
from exchange.errors import UserError


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_yaml_builds_on_its_base_and_the_command_line_has_the_last_word(tmp_path):
    write(tmp_path / "base.yaml", {"SOLVER": {"MAX_ITER": 7, "IMS_PER_BATCH": 2}})
    path = write(tmp_path / "x.yaml", {"_BASE_": "base.yaml", "SOLVER": {"MAX_ITER": 8}})
    cfg = load_config(path, ["SOLVER.BASE_LR", "1e-3", "DATASETS.TRAIN", "('a','b')"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (8, 2, 0.001)
    assert cfg.DATASETS.TRAIN == ["a", "b"]


def test_tuples_as_detectron2_writes_them_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text('DATASETS:\n  TRAIN: ("lvis_v1_train",)\n')
    assert load_config(str(tmp_path / "x.yaml")).DATASETS.TRAIN == ["lvis_v1_train"]


def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(tmp_path):
    path = write(tmp_path / "x.yaml", {"SOLVER": {"BASE_LRR": 1.0}})
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LRR.*did you mean SOLVER\.BASE_LR\?"):
        load_config(path)


def test_a_key_of_the_detectron2_family_without_effect_is_a_warning_that_names_it(tmp_path, caplog):
    load_config(write(tmp_path / "x.yaml", {"MODEL": {"DETR": {"NHEADS": 8}}}))
    assert "MODEL.DETR.NHEADS" in caplog.text


def test_a_value_of_the_wrong_type_is_an_error_that_names_the_key(tmp_path):
    with pytest.raises(UserError, match=r"SOLVER\.MAX_ITER.*int"):
        load_config(write(tmp_path / "x.yaml", {"SOLVER": {"MAX_ITER": "many"}}))


def test_a_missing_file_a_missing_base_and_broken_yaml_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(UserError, match="base.yaml"):
        load_config(write(tmp_path / "x.yaml", {"_BASE_": "base.yaml"}))
    (tmp_path / "y.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"y\.yaml is not valid YAML"):
        load_config(str(tmp_path / "y.yaml"))


def test_the_configuration_is_frozen_and_flattens_to_its_keys(tmp_path):
    cfg = load_config(write(tmp_path / "x.yaml", {}))
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    assert dict(flatten(cfg))["SOLVER.ROUND_ITERS"] == 9000
