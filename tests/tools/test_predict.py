import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from detectron2_ext.predictor import Prediction, Predictor
from exchange.errors import UserError
from tests.digits_run import CATEGORIES, write_run, write_scenes
from tools import predict
from tools.outlines import class_color

NO_IMAGE = r"holds no image: the names of images end in \.bmp, \.jpeg, \.jpg, \.png, \.tif, \.tiff, \.webp$"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


def test_a_folder_becomes_pictures_and_results_that_coco_s_tools_read(
    run, tmp_path, call, capsys, monkeypatch
):
    photos = tmp_path / "with spaces/und Ümläut"
    write_scenes(photos, 5)
    for number in range(5):  # wider than high
        with Image.open(photos / f"scene {number}.png") as scene:
            scene.crop((0, 0, 160, 120)).save(photos / f"scene {number}.png")
    (photos / "scene 0.png").rename(photos / "scene 0.PNG")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no")
    (photos / "folder.png").mkdir()
    out = tmp_path / "with spaces/found"
    call(predict, "--run", run, tmp_path / "with spaces", "--out", out, "--batch-size", 2, "--score", 0.3)
    told = capsys.readouterr().out
    coco = COCO(str(out / "images.json"))
    results = coco.loadRes(str(out / "coco_instances_results.json"))
    names = [image["file_name"] for image in coco.dataset["images"]]
    assert names == [f"und Ümläut/scene {n}.{'png' if n else 'PNG'}" for n in range(5)]
    assert coco.dataset["categories"] == CATEGORIES
    found = json.loads((out / "coco_instances_results.json").read_text())
    assert {tuple(one["segmentation"]["size"]) for one in found} == {(120, 160)}
    assert {(image["height"], image["width"]) for image in coco.dataset["images"]} == {(120, 160)}
    assert told.startswith(f"{len(found)} objects in 5 images, 1 could not be read")
    predictor = Predictor.from_run(str(run))
    for image in coco.dataset["images"]:
        alone = predictor(str(tmp_path / "with spaces" / image["file_name"]))
        ours = results.loadAnns(results.getAnnIds(imgIds=[image["id"]]))
        assert [record["category_id"] for record in ours[:3]] == alone.category_ids[:3].tolist()
        np.testing.assert_allclose([record["score"] for record in ours[:3]], alone.scores[:3], rtol=1e-3)
        picture = np.asarray(Image.open(out / "pictures" / f"{image['file_name']}.png"))
        assert picture.shape == (300, 400, 3)
    monkeypatch.chdir(out.parent)
    for given in (out, Path("found")):
        assert len(predict.image_files(out.parent, given)) == 6  # its own pictures are no input


def test_a_folder_without_a_readable_image_is_refused_and_leaves_no_results(run, tmp_path, call):
    for path, sentence in ((tmp_path / "no", "there is no folder"), (tmp_path, NO_IMAGE)):
        with pytest.raises(UserError, match=sentence):
            call(predict, "--run", run, path, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="--batch-size is 0: give 1 or more"):
        call(predict, "--run", run, tmp_path, "--out", tmp_path / "out", "--batch-size", 0)
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(UserError, match="none of the 1 images"):
        call(predict, "--run", run, tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out/coco_instances_results.json").exists()


@pytest.mark.parametrize(("source", "load"), [("--run", "from_run"), ("--weights", "from_checkpoint")])
def test_a_run_or_a_file_predicts_on_the_device_that_is_named_and_what_is_likely_is_drawn(
    source, load, run, tmp_path, call, monkeypatch
):
    predictor, loaded, drawn = Predictor.from_run(str(run)), [], []
    monkeypatch.setattr(Predictor, load, lambda *given: loaded.append(given) or predictor)
    monkeypatch.setattr(predict, "draw", lambda pixels, found: drawn.append(found) or pixels)
    write_scenes(tmp_path, 1)
    call(predict, source, "theirs", tmp_path, "--out", tmp_path / "out", "--device", "cuda:1")
    assert loaded == [("theirs", "cuda:1")]
    assert [len(found) for found in drawn] == [len(predictor(str(tmp_path / "scene 0.png"), 0.5))]
    assert 0 < len(drawn[0]) < len(predictor(str(tmp_path / "scene 0.png"), 0.05))
    detect = predictor.detect
    monkeypatch.setattr(predictor, "detect", lambda images: [found[:0] for found in detect(images)])
    with_gaps = [replace(category, id=3 * category.id) for category in predictor.categories]
    monkeypatch.setattr(predictor, "categories", with_gaps)
    call(predict, source, "theirs", tmp_path, "--out", tmp_path / "out")
    told = json.loads((tmp_path / "out/images.json").read_text())
    assert told["categories"] == [vars(category) for category in with_gaps]
    assert json.loads((tmp_path / "out/coco_instances_results.json").read_text()) == []


def test_an_object_has_its_name_and_score_and_the_colour_of_its_category(monkeypatch):
    monkeypatch.setattr(predict, "draw_objects", drawn := Mock(return_value=[]))
    masks, scores = np.zeros((2, 40, 60), bool), np.array([0.876, 0.5])
    found = Prediction(np.zeros((2, 4)), masks, scores, np.array([3, 7]), ["red disc", "kite"])
    predict.draw(np.zeros((40, 60, 3), np.uint8), found)
    *_, labels, colors, side = drawn.call_args.args
    assert (labels, side) == (["red disc 0.88", "kite 0.50"], 400)
    assert colors == [class_color(3), class_color(7)] and colors[0] != colors[1]
    assert [class_color(0), class_color(1)] == [(230, 46, 46), (46, 99, 230)]


@pytest.mark.parametrize(("side", "of_picture"), [(100, 400), (900, 900), (2000, 1600)])
def test_a_picture_has_the_image_s_size_but_for_small_and_very_large_ones(side, of_picture):
    nothing = Prediction(
        np.zeros((0, 4)), np.zeros((0, side // 2, side), bool), np.zeros(0), np.zeros(0, int), []
    )
    picture = predict.draw(np.zeros((side // 2, side, 3), np.uint8), nothing)
    assert picture.shape == (of_picture // 2, of_picture, 3)
