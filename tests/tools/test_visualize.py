import json
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2_ext.data.mapper import PasteInfo
from detectron2_ext.structures import Instances
from exchange import files
from exchange.config import REPOSITORY
from exchange.errors import UserError
from exchange.images import read_record
from exchange.layout import RunLayout
from exchange.pasted import Pasted
from tools import outlines, sheets, visualize
from tools.outlines import PASTED, REAL, class_color, draw_objects, free_place

CATEGORIES = [{"id": 3, "name": "crane"}, {"id": 7, "name": "kite"}]


@pytest.fixture
def settings(tmp_path):
    """A data set of four images with one object each, and the settings that name it."""
    images, annotations = [], []
    for n in range(1, 5):
        Image.new("RGB", (64, 48), (90, 30, 0)).save(tmp_path / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": 64, "height": 48})
        polygon = [10, 10, 40, 10, 40, 30, 10, 30]
        annotations.append(
            {"id": n, "image_id": n, "category_id": 7, "bbox": [10, 10, 30, 20], "segmentation": [polygon]}
        )
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "set.json").write_text(json.dumps(content))
    path = tmp_path / "settings.yaml"
    values = {
        "DATASETS": {"TRAIN": ["set"], "CUSTOM": [["set", str(tmp_path / "set.json"), str(tmp_path)]]},
        "INPUT": {"TRAIN_SIZE": 64, "SCALE_RANGE": [1.0, 1.0]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    path.write_text(json.dumps(values))
    return path


def test_a_sheet_of_training_images_goes_to_the_runs_pictures(settings, monkeypatch, capsys, call):
    call(visualize, "data", "--config", settings, "--num", 3, "SOLVER.IMS_PER_BATCH", 2)
    path = settings.parent / "run/pictures/data_rd00.png"
    assert capsys.readouterr().out.strip() == str(path)
    sheet = np.asarray(Image.open(path))
    assert (sheet[-300:, -300:] == sheet[0, 0]).all()  # the fourth cell, though there are two batches of two
    assert REAL[2] > 2 * REAL[0] and PASTED[0] > 2 * PASTED[2]  # blue and orange
    for color, expected in ((REAL, True), (PASTED, False)):
        assert (sheet == color).all(axis=-1).any() == expected
    assert (sheet == (90, 30, 0)).all(axis=-1).any()
    out = settings.parent / "other.png"
    given = ("--num", 3, "--out", out, "SOLVER.IMS_PER_BATCH", 2, "INPUT.FORMAT", "BGR")
    call(visualize, "data", "--config", settings, *given)
    assert (np.asarray(Image.open(out)) == sheet).all()


def test_training_images_are_those_of_the_newest_round_with_the_feedback_that_it_had(
    settings, monkeypatch, call
):
    asked = {}
    layout = RunLayout(str(settings.parent / "run"))
    for path in (layout.pool_index(3), layout.pool_index(0), layout.feedback_history(1)):
        files.write_bytes(path, b"")
    monkeypatch.setattr(sheets, "build_train_loader", lambda cfg, **values: asked.update(values) or [])
    monkeypatch.setattr(sheets, "build_pool", lambda cfg, layout, round_, dataset: round_)
    monkeypatch.setattr(sheets, "read_feedback", str)
    given = ("SOLVER.IMS_PER_BATCH", 2, "INPUT.INST_POOL_FEED", True)
    call(visualize, "data", "--config", settings, "--num", 5, *given)
    assert (asked["start_iteration"], asked["num_iterations"]) == (27000, 3)
    assert (asked["pool"], asked["feedback"]) == (3, layout.feedback_history(1))
    assert (settings.parent / "run/pictures/data_rd03.png").exists()
    call(visualize, "data", "--config", settings, "--round", 0, "--num", 1)
    assert (asked["start_iteration"], asked["pool"], asked["feedback"]) == (0, 0, None)


def test_what_was_pasted_is_named_in_the_picture_and_in_its_record(settings, monkeypatch, call):
    masks = torch.zeros(3, 48, 64, dtype=torch.bool)
    boxes = torch.tensor([[9.0, 9, 40, 30], [10, 10, 20, 20], [0, 0, 8, 8]])
    instances = SimpleNamespace(gt_boxes=boxes, gt_classes=torch.ones(3, dtype=torch.int64))
    instances.gt_masks, instances.instance_source = Mock(to_full=lambda: masks), torch.tensor([0, 1, 1])
    # What others cover is no object of the image any more; the last one was copied from another image.
    covered = [(30, 30, 40, 40), (12, 0, 60, 40), (0, 12, 60, 40), (0, 0, 18, 40), (0, 0, 60, 18)]
    pasted = [PasteInfo(1, box, index) for index, box in enumerate(covered, start=1)]
    pasted += [PasteInfo(0, (10, 10, 22, 22), 6), PasteInfo(1, (10, 10, 22, 22), 0)]
    pasted.append(PasteInfo(1, (0, 0, 8, 8)))
    item = {"height": 48, "width": 64, "file_name": "a.png", "instances": instances, "paste_info": pasted}
    item["image"] = torch.zeros(3, 48, 64, dtype=torch.uint8)
    batches = [[item | {"paste_info": []}], [item]]
    monkeypatch.setattr(sheets, "build_train_loader", lambda cfg, **_: batches)
    monkeypatch.setattr(
        sheets, "build_pool", lambda *_: Mock(instance=lambda index: f"01_0001_000{index}.png")
    )
    drawn, draw = [], sheets.draw_objects
    monkeypatch.setattr(sheets, "draw_objects", lambda *given: drawn.append(given[3]) or draw(*given))
    sheet, told = sheets.contact_sheet, []
    monkeypatch.setattr(sheets, "contact_sheet", lambda *given: told.extend(given[1:]) or sheet(*given))
    call(visualize, "data", "--config", settings, "--num", 2)
    title = "set, round 0: real objects blue, pasted objects orange"
    assert told == [["1: 64 x 48, 0 pasted, a.png", "2: 64 x 48, 8 pasted, a.png"], title]
    record = read_record(Pasted, str(settings.parent / "run/pictures/data_rd00.png"))
    assert record == Pasted([2], ["01_0001_0000.png"], [7])
    assert drawn == [["kite"] * 3, ["kite", "kite 01_0001_0000", "kite"]]


def test_predictions_are_those_of_the_average_in_images_spread_over_the_test_set(settings, monkeypatch, call):
    seen, loaded = [], []

    def network(batch):
        seen.append(batch[0]["image_id"])
        scores = torch.tensor([0.9, 0.5, 0.4])
        boxes, masks = torch.tensor([[8.0, 8, 40, 40]] * 3), torch.zeros(3, 48, 64, dtype=torch.bool)
        labels = torch.ones(3, dtype=torch.int64)
        found = Instances((48, 64), pred_boxes=boxes, scores=scores, pred_classes=labels, pred_masks=masks)
        return [{"instances": found}]

    network.eval = lambda: seen.append("eval")
    drawn = []
    monkeypatch.setattr(sheets, "build_model", lambda cfg: network)
    monkeypatch.setattr(sheets, "load_weights", lambda *given, **options: loaded.append((*given, options)))
    draw, side_by_side = sheets.draw_objects, []

    def watched(image, boxes, masks, labels, colors):
        drawn.append((boxes.tolist(), labels))
        assert set(colors) == {class_color(1)}
        return draw(image, boxes, masks, labels, colors)

    def sheet(pictures, captions, title):
        assert all((np.asarray(picture)[:, 400:404] == 255).all() for picture in pictures)
        side_by_side.append(({picture.size for picture in pictures}, captions, title))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(sheets, "draw_objects", watched)
    monkeypatch.setattr(sheets, "contact_sheet", sheet)
    train = settings.parent / "run/train"
    train.mkdir(parents=True)
    (train / "last_checkpoint").write_text("model_0000001.pth")
    (train / "model_0000001.pth").touch()
    values = json.loads(settings.read_text()) | {"MODEL": {"WEIGHTS": "/start.pth"}}
    settings.write_text(json.dumps(values))
    (settings.parent / "2.png").write_bytes(b"is no image")
    (settings.parent / "extra.json").write_text(json.dumps([{"id": 9, "name": "moth"}]))
    extra = ("DATASETS.EXTRA_CATEGORIES", settings.parent / "extra.json")
    for given in ((), ("--score", 0.6, "MODEL.WEIGHTS", "other.pth", *extra)):
        call(
            visualize,
            "predictions",
            "--config",
            settings,
            "--num",
            3,
            "DATASETS.TEST",
            "['set', 'more']",
            *given,
        )
    assert loaded == [
        (network, path, {"use_ema": True, "classes": ["crane", "kite", *more]})
        for path, *more in ((f"{train}/model_0000001.pth",), (str(REPOSITORY / "other.pth"), "moth"))
    ]
    assert seen == ["eval", 1, 4] * 2
    truth, found = ([[10, 10, 40, 30]], ["kite"]), ([[8, 8, 40, 40]] * 2, ["kite 0.90", "kite 0.50"])
    assert drawn == [truth, found] * 2 + [truth, ([[8, 8, 40, 40]], ["kite 0.90"])] * 2
    title = "set: left what is annotated, right what {} finds with scores from {}"
    assert side_by_side == [
        (
            {(2 * 400 + 4, 300)},
            [f"1 objects, {found} found, {n}.png" for n in (1, 4)],
            title.format(*of_title),
        )
        for found, of_title in ((2, ("model_0000001.pth", 0.5)), (1, ("other.pth", 0.6)))
    ]


def test_asking_for_no_image_is_refused(settings, call):
    with pytest.raises(UserError, match="--num is 0"):
        call(visualize, "data", "--config", settings, "--num", 0)


def test_predictions_without_a_checkpoint_are_refused(settings, call):
    with pytest.raises(UserError, match="has no checkpoint"):
        call(visualize, "predictions", "--config", settings)


def test_masks_are_tinted_and_outlined_where_they_are():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 10:30, 10:30] = mask[0, 2:4, 30:38] = True
    boxes, image = np.array([[5.0, 5, 35, 35]]), np.zeros((40, 40, 3), np.uint8)
    picture = np.asarray(draw_objects(image, boxes, mask, ["kite"], [REAL], side=400))
    assert picture.shape == (400, 400, 3)
    np.testing.assert_allclose(picture[200, 200], 0.2 * np.array(REAL), atol=1)
    assert not picture[360, 360].any()
    assert tuple(picture[100, 200]) == tuple(picture[200, 50]) == REAL  # outlines of mask and box
    assert tuple(picture[20, 340]) == REAL  # of the mask's other part
    assert tuple(picture[35, 51]) == REAL and (picture[34:50, 50:99] == 255).all(-1).any()  # a label above it


def test_small_images_keep_their_colours_and_large_ones_are_averaged():
    stripes = np.zeros((16, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    drawn = [
        np.asarray(draw_objects(stripes, np.zeros((0, 4)), np.zeros((0, 16, 64), bool), [], [], side))
        for side in (256, 16)
    ]
    assert [picture.shape for picture in drawn] == [(64, 256, 3), (4, 16, 3)]
    assert set(drawn[0].flat) == {0, 200}
    assert (abs(drawn[1].astype(int) - 100) < 25).all()
    upright = draw_objects(np.rot90(stripes), np.zeros((0, 4)), np.zeros((0, 64, 16), bool), [], [], 256)
    assert np.array_equal(np.asarray(upright), np.rot90(drawn[0]))


def test_neighbouring_classes_have_colours_that_differ():
    colors = np.array([class_color(index) for index in range(30)], int)
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 80


def test_labels_do_not_cover_each_other_while_there_is_room(monkeypatch):
    placed = []

    def watched(*arguments):
        placed.append(free_place(*arguments))
        return placed[-1]

    monkeypatch.setattr(outlines, "free_place", watched)
    boxes = np.array(
        [[10.0, 10, 60, 60], [12, 11, 50, 40], [11, 60, 40, 70], [70, 0, 100, 30], [90, 90, 99, 99]]
    )
    names = ["the first", "the second", "the third", "a label that is long", "at the corner"]
    dark, colors = np.zeros((100, 100, 3), np.uint8), [(0, n, 0) for n in range(100, 105)]
    picture = np.asarray(draw_objects(dark, boxes, np.zeros((5, 100, 100), bool), names, colors))
    for n, (left, top, right, bottom) in enumerate(placed):
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 400
        label = picture[int(top) : int(bottom), int(left) : int(right)]
        assert (label.max(axis=2) > 200).sum() > 30, names[n]  # its text
        assert all(left >= r or x >= right or top >= b or y >= bottom for x, y, r, b in placed[:n]), names[n]
    assert [top for _, top, *_ in placed] == [24, 40, 224, 0, 344]  # on its box, or as near as may be
    assert placed[0][0] == 40
    assert [tuple(picture[240, 230]), tuple(picture[120, 300])] == [colors[0], colors[3]]  # boxes' edges
    full = [(0.0, 0.0, 400.0, 400.0)]
    assert free_place(5, 50, 20, 10, (400, 400), full) == (5, 50, 25, 60)


def test_a_label_s_place_takes_a_look_at_each_other_one_however_many_there_are():
    looks = []

    class Taken(list):
        def __iter__(self):
            looks.append(len(self))
            return super().__iter__()

    stacked = Taken((0.0, 10.0 * n, 20.0, 10.0 * n + 10) for n in range(39))
    assert free_place(5, 50, 20, 10, (400, 400), stacked) == (5, 390, 25, 400)
    assert looks == [39]
    assert free_place(5, 50, 20, 10, (400, 400), stacked[::-1]) == (5, 390, 25, 400)
    assert free_place(20, 50, 20, 10, (400, 400), stacked) == (20, 50, 40, 60)  # beside them
