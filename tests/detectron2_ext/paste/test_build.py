"""From the settings to what is pasted."""

from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from detectron2_ext.data.loader import build_dataset
from detectron2_ext.data.view import Scene, SceneReader
from detectron2_ext.paste import build
from detectron2_ext.paste.build import _weights, build_pasters, build_pool, build_single_paster
from detectron2_ext.paste.composite import BLENDS, Occlusion, RandomMirror, RandomRotation
from detectron2_ext.paste.pasters import ImagePaster
from detectron2_ext.paste.plan import Placement
from detectron2_ext.paste.pool import ImagesWithMasks, InstancePool
from exchange import files
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.layout import RunLayout


def test_a_pool_keeps_its_surroundings_where_the_settings_say(configure):
    for crop, side in (("True", 31), ("False", 48)):
        cfg = configure("INPUT.INST_POOL_CROP", crop)
        pool = build_pool(cfg, RunLayout("unused"), 0, build_dataset(cfg, "small"))
        assert pool.load(0).shape == (side, side, 4)


def test_a_pool_whose_categories_have_other_names_is_refused(configure, index_of, tmp_path):
    cfg = configure()
    run = index_of(tmp_path / "pool/pool.json")
    names = [{"id": 10, "name": "class 0"}, {"id": 20, "name": "crane"}, {"id": 99, "name": "kite"}]
    files.write_json(run.pool_categories(), {"images": [], "annotations": [], "categories": names})
    file = tmp_path / "renamed.json"
    file.write_text((tmp_path / "pool/pool.json").read_text().replace("class 1", "crane"))
    for path in (run.root, str(file)):
        cfg = configure("INPUT.INST_POOL_PATH", path)
        with pytest.raises(
            UserError, match=r"category 20 is 'crane' in .*\.json, but 'class 1' in DATASETS\.TRAIN"
        ):
            build_pool(cfg, RunLayout("unused"), 0, build_dataset(cfg, "small"))
    cfg = configure("INPUT.INST_POOL_PATH", run.root)
    files.write_json(run.pool_categories(), {"images": [], "annotations": [], "categories": names[:1]})
    assert len(build_pool(cfg, RunLayout("unused"), 0, build_dataset(cfg, "small")))  # that lists some alone


def test_an_empty_pool_pastes_nothing_and_keeps_no_image_from_being_copied_from(configure):
    nothing = np.zeros(0, np.int64)
    pool = InstancePool(ImagesWithMasks("raw", "segmented", [], nothing), np.array([10, 20, 30]))
    for method, kinds in (("syn_copy", []), ("both", [ImagePaster])):
        cfg = configure("INPUT.USE_COPY_METHOD", method)
        reader = SceneReader(build_dataset(cfg, "small"), None)
        assert [type(paster) for paster in build_pasters(cfg, reader, None, pool, None, 0, 0)] == kinds


def test_a_single_instance_is_pasted_as_in_training(monkeypatch):
    monkeypatch.setattr(build, "PoolPaster", made := Mock())
    monkeypatch.setattr(build, "_build_plan", Mock())
    settings = {"USE_COPY_METHOD": "syn_copy", "CP_METHOD": "[alpha, gaussian]", "OCCLUSION_FEW_PIXELS": "7"}
    settings |= {"RANDOM_FLIP": "none", "RANDOM_ROTATE": "True", "INST_POOL_AREA_CERTAINTY": "0.25"}
    pairs = [part for name, value in settings.items() for part in (f"INPUT.{name}", value)]
    cfg = load_config(str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), pairs)
    pool = Mock(categories=np.array([2, 0, 1]), __len__=lambda pool: 3)
    build_pasters(cfg, Mock(), None, pool, None, round_=0, seed=0)
    build_single_paster(cfg, Mock(), pool)
    training, single = (call.args for call in made.call_args_list)
    assert single[3:] == training[3:] == ([BLENDS["alpha"], BLENDS["gaussian"]], Occlusion(10, 7))
    for augmentations in (training[2], single[2]):
        mirror, rotation = augmentations
        assert isinstance(mirror, RandomMirror) and isinstance(rotation, RandomRotation)
    scene = Scene(np.zeros((48, 64, 3), np.uint8), [])
    for k in range(3):
        assert list(single[1](scene, k, np.random.default_rng(0))) == [Placement(k, 0.25, None)]


def test_a_way_to_blend_that_there_is_not_is_refused_for_a_single_instance_too(configure):
    cfg = configure("INPUT.CP_METHOD", "[smooth]")
    with pytest.raises(UserError, match=r"INPUT\.CP_METHOD is .*choose from basic"):
        build_single_paster(cfg, build_dataset(cfg, "small"), Mock(categories=np.zeros(1, int)))


@pytest.mark.parametrize(("flip", "mirrored"), [("none", {False}), ("horizontal", {False, True})])
def test_cutouts_are_mirrored_only_where_the_settings_say(configure, tmp_path, flip, mirrored):
    half = np.zeros((48, 48, 3), np.uint8)
    half[:, :24] = 255
    for path in (tmp_path / "pool/raw").iterdir():
        cv2.imwrite(str(path), half)
    cfg = configure("INPUT.RANDOM_FLIP", flip)
    pool = build_pool(cfg, RunLayout("unused"), 0, build_dataset(cfg, "small"))
    (paster,) = build_pasters(cfg, SceneReader(build_dataset(cfg, "small"), None), None, pool, None, 0, 0)
    seen = set()
    for k in range(20):
        canvas = Scene(np.full((100, 100, 3), 100, np.uint8), [])
        paster(canvas, k, np.random.default_rng(k), [])
        bright, dark = ((canvas.image[..., 0] == value).nonzero()[1] for value in (255, 0))
        if len(canvas.objects) == 1 and len(bright) and len(dark):
            seen.add(bool(bright.mean() > dark.mean()))
    assert seen == mirrored


def pasted_shares(cfg, pool, count=4000) -> np.ndarray:
    """How often each instance is pasted into a bare canvas, as a share of all."""
    (paster,) = build_pasters(cfg, SceneReader(build_dataset(cfg, "small"), None), None, pool, None, 0, 0)
    drawn = []
    for k in range(count):
        canvas = Scene(np.zeros((16, 16, 3), np.uint8), [])
        drawn += [info.pool_index for info in paster(canvas, k, np.random.default_rng(k), [])]
    return np.bincount(drawn, minlength=len(pool)) / len(drawn)


WEIGHTED = ("INPUT.INST_POOL_SAMPLE_TYPE", "weighted", "INPUT.INST_POOL_SIZE", "uniform")
WEIGHTED += ("INPUT.INST_POOL_SIZE_RANGE", "[0.5, 0.5]")


@pytest.mark.parametrize(
    ("weight", "latest_only"),
    [("class", False), ("class", True), ("clip_white", True), ("area", False)],
)
def test_instances_of_the_runs_pool_are_weighted_by_what_the_settings_name(
    configure, filled_lvis, index_of, tmp_path, weight, latest_only
):
    for category, count in ((0, 3), (1, 40)):
        for _ in range(count):
            filled_lvis.add_object(2, category, [1, 1, 30, 30], iscrowd=category)  # crowds do not count
    filled_lvis.write()
    real = [
        sum(a["category_id"] == c and not a["iscrowd"] for a in filled_lvis.annotations) for c in (10, 20)
    ]
    cfg = configure(
        *("INPUT.INST_POOL", "False", "INPUT.INST_POOL_FEED", "True", "INPUT.INST_POOL_WEIGHT", weight),
        *("SEGMENTER.LATEST_ROUND_ONLY", str(latest_only), *WEIGHTED),
    )
    pool = build_pool(cfg, index_of(tmp_path / "pool/pool.json"), 1, build_dataset(cfg, "small"))
    numbers = [1, 3] if latest_only else [0, 2, 4, 1, 3]  # of classes n % 3
    shown = {0: real[0], 1: real[1], 2: 1}
    of_class = [
        1 / shown[n % 3] / sum(other % 3 == n % 3 for other in numbers) if weight == "class" else 0
        for n in numbers
    ]
    expected = {
        "class": of_class,
        "clip_white": [20 + n for n in numbers],
        "area": [100 + 50 * n for n in numbers],
    }[weight]
    np.testing.assert_allclose(pasted_shares(cfg, pool), np.array(expected) / sum(expected), atol=0.02)


def test_a_class_weighs_by_its_training_objects_and_one_that_has_none_as_if_it_had_one():
    dataset = Mock(classes=np.array([0, 0, 1, 0]), crowd=np.array([False, False, True, False]), num_classes=3)
    weights = _weights("class", dataset, Mock(categories=np.array([0, 1, 0, 1, 1])))
    np.testing.assert_allclose(weights, [1 / 3 / 2, 1 / 3, 1 / 3 / 2, 1 / 3, 1 / 3])
