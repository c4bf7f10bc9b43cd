"""The network as a function: the same objects as in the evaluation, with names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from detectron2_ext.evaluation.evaluator import validate
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.modeling import build_detector, load_weights
from detectron2_ext.modeling.described import last_checkpoint, read_described, write_described
from detectron2_ext.predictor import Predictor, pixels_of
from exchange import files
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from tests.detectron2_ext.engine.tiny import ALONE
from tests.digits_run import CATEGORIES, CONFIG, write_run, write_scenes
from tools import export

SCENES = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return folder, write_scenes(folder, SCENES)


@pytest.fixture(scope="module")
def exported(run):
    path = str(run / "digits.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export.py", str(run / "train/model_initial.pth"), path])
        export.main()
    return path


@pytest.mark.bits
def test_objects_are_those_of_the_evaluation_bit_for_bit(run, photos, tmp_path):
    folder, _ = photos
    custom = f"[[scenes, {folder / 'scenes.json'}, {folder}]]"
    cfg = load_config(CONFIG, ["DATASETS.CUSTOM", custom, "DATASETS.TEST", "[scenes]"])
    model = build_detector(cfg)
    load_weights(model, str(REPOSITORY / cfg.MODEL.WEIGHTS))
    validate(cfg, model, "scenes", str(tmp_path), ALONE)
    evaluated = files.read_json(str(tmp_path / "scenes/lvis_instances_results.json"))
    predictor = Predictor.from_run(str(run))
    found = []
    for number in range(SCENES):
        pixels = np.array(Image.open(folder / f"scene {number}.png"))
        columns = Predictions.from_instances(number + 1, predictor.detect([pixels])[0], 100)
        found += columns.to_json(np.arange(1, 31))
    assert len(evaluated) > SCENES and [json.loads(record) for record in found] == evaluated


def test_paths_pictures_and_pixels_give_the_same_names_scores_boxes_and_masks(run, photos):
    folder, composed = photos
    predictor = Predictor.from_run(run)
    assert Predictor.from_checkpoint(Path(last_checkpoint(run))).categories == predictor.categories
    path = folder / "scene 2.png"
    predictions = [predictor(image) for image in (str(path), path, Image.open(path), composed[2].image)]
    for one in predictions[1:]:
        for field in ("boxes", "masks", "scores", "category_ids"):
            np.testing.assert_array_equal(getattr(one, field), getattr(predictions[0], field))
    lowest = float(predictions[0].scores[0])
    best = predictor(path, min_score=lowest)
    assert len(best) and best.scores.min() == lowest  # "at least" has it, too
    names = {category["id"]: category["name"] for category in CATEGORIES}
    assert best.names == [names[number] for number in best.category_ids.tolist()]
    truth = composed[2].masks[0]
    assert best.names[0] == names[composed[2].categories[0]]
    assert (best.masks[0] & truth).sum() > 0.7 * (best.masks[0] | truth).sum()


def test_a_photograph_that_lies_on_its_side_is_seen_upright(run, photos):
    predictor = Predictor.from_run(str(run))
    upright = Image.open(photos[0] / "scene 0.png").crop((0, 0, 160, 120))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # turn it by 90 degrees clockwise
    found = predictor(lying)
    assert found.masks.shape[1:] == (120, 160)
    np.testing.assert_array_equal(found.boxes, predictor(upright).boxes)


@pytest.mark.parametrize(
    "pixels", [np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((0, 9, 3), np.uint8)]
)
def test_pixels_of_another_form_are_refused(run, pixels):
    with pytest.raises(UserError, match=r"an image is uint8 \(H, W, 3\) in the order RGB, not"):
        Predictor.from_run(str(run))(pixels)


def test_pixels_that_may_not_be_written_to_are_copied_for_torch():
    pixels = np.arange(9 * 8 * 3, dtype=np.uint8).reshape(9, 8, 3)
    pixels.setflags(write=False)
    copied = pixels_of(pixels)
    assert copied.flags.writeable and np.array_equal(copied, pixels)


def test_an_exported_file_has_the_evaluated_weights_settings_and_names_in_a_quarter_of_the_size(
    run, exported
):
    checkpoint = str(run / "train/model_initial.pth")
    content = torch.load(checkpoint, weights_only=True)
    assert 0.2 < os.path.getsize(exported) / os.path.getsize(checkpoint) < 0.3
    with safe_open(exported, "pt") as file:
        assert set(file.keys()) == set(content["model_ema"])
        for name in file.keys():
            assert torch.equal(file.get_tensor(name), content["model_ema"][name])
    one, other = (read_described(path) for path in (checkpoint, exported))
    assert one.cfg == other.cfg and one.cfg.INPUT.MIN_SIZE_TEST == 160
    assert one.categories == other.categories and [vars(c) for c in one.categories] == CATEGORIES


def test_predictor_and_model_weights_read_what_was_exported(run, exported, photos):
    cfg = load_config(CONFIG)
    model = build_detector(cfg)
    assert len(load_weights(model, exported, use_ema=True).loaded) == len(model.state_dict())
    path = str(photos[0] / "scene 1.png")
    ours, theirs = Predictor.from_checkpoint(exported)(path), Predictor.from_run(str(run))(path)
    np.testing.assert_array_equal(ours.scores, theirs.scores)


def test_weights_of_others_are_exported_with_the_names_of_a_configuration(photos, tmp_path, call):
    folder, _ = photos
    weights, out = (
        str(REPOSITORY / "assets/digits/segmenter/model.safetensors"),
        str(tmp_path / "x.safetensors"),
    )
    custom = [
        "DATASETS.CUSTOM",
        f"[[scenes, {folder / 'scenes.json'}, {folder}]]",
        "DATASETS.TRAIN",
        "[scenes]",
    ]
    call(export, weights, out, "--config", CONFIG, *custom)
    assert [vars(category) for category in read_described(out).categories] == CATEGORIES


def test_weights_that_do_not_say_what_they_are_of_and_folders_without_any_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="does not say its settings and the names of its categories"):
        Predictor.from_checkpoint(str(REPOSITORY / "assets/digits/segmenter/model.safetensors"))
    with pytest.raises(UserError, match="holds no checkpoint"):
        Predictor.from_run(str(tmp_path))
    whole = read_described(str(run / "train/model_initial.pth"))
    path = str(tmp_path / "x.safetensors")
    write_described(path, whole.content["model"], whole.cfg, whole.categories[:-1])
    with pytest.raises(UserError, match="names of 29 categories, but MODEL.ROI_HEADS.NUM_CLASSES is 30"):
        read_described(path)
