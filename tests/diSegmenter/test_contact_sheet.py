import dataclasses

import numpy as np
from PIL import Image

from diSegmenter import report
from diSegmenter.report import contact_sheet, framed_pair, instance_sheet
from exchange import files
from exchange.images import encode_png
from tests.diSegmenter.conftest import generate, pool_instance

NAMES = {3: "red disc", 7: "blue disc"}


def test_a_sheet_has_a_cell_for_each_picture_line_by_line():
    pictures = [Image.new("RGB", (100, 80), (200, n, 0)) for n in range(5)]
    sheet = np.asarray(contact_sheet(pictures, [""] * 5, ""))
    for n in range(5):
        places = np.argwhere((sheet == (200, n, 0)).all(axis=-1))
        assert len(places) == 100 * 80 and places[0].tolist() == [10 + n // 3 * 108, 10 + n % 3 * 110]


def masked(layout, count):
    """Instances whose images and empty masks are on disk."""
    instances = []
    for item in generate(layout, 0, count):
        path = layout.segmented(item.file)
        files.write_bytes(path, encode_png(np.zeros((40, 48), np.uint8)))
        instances.append(pool_instance(0, item.category_id, item.instance))
    return instances


def test_kept_ones_are_framed_green_and_dropped_ones_red_above_class_score_and_verdict(layout, monkeypatch):
    told, draw = [], report.contact_sheet
    monkeypatch.setattr(report, "contact_sheet", lambda *given: told.append(given[1:]) or draw(*given))
    (instance,) = masked(layout, 1)
    for reason, frame in (("", (22, 130, 60)), ("CLIP score", (190, 40, 40))):
        judged = dataclasses.replace(instance, reason=reason, clip_black=12.345)
        sheet = np.asarray(instance_sheet(layout, "round 0", [judged], {3: "red disc" * 9}))
        assert (sheet == frame).all(axis=-1).any(axis=1).sum() == 124
        assert (sheet == 235).all(axis=-1).any()  # the mask shows nothing
    assert told == [
        ([f"{('red disc' * 9)[:34]}\n12.3 {what}"], "round 0") for what in ("kept", "dropped: CLIP score")
    ]


def test_the_cut_out_stands_over_grey_squares_right_of_its_image():
    image, alpha = np.full((40, 48, 4), (200, 0, 0, 255), np.uint8), np.zeros((40, 48), np.uint8)
    alpha[:, :24] = 255
    pair = np.asarray(framed_pair(image, alpha, (0, 0, 0)))
    first, second = pair[6:118, 6:118], pair[6:118, 124:236]
    assert (first == (200, 0, 0)).all() and (second[:, :50] == (200, 0, 0)).all()
    assert framed_pair(image[:3], alpha[:3], (0, 0, 0)).size == (242, 124)  # however small it is
    behind = second[:, 62:]
    assert (behind[..., :1] == behind).all() and {200, 235} <= set(behind.ravel().tolist())


def test_the_sheet_of_a_round_shows_a_spread_of_it(layout):
    sheet = instance_sheet(layout, "round 0", masked(layout, 80), NAMES)
    assert sheet.size == (7 * 252 + 10, 6 * 170 + 46)  # every second one: six rows of seven
    gone = [pool_instance(9, 3, number) for number in range(80)]
    assert instance_sheet(layout, "round 9", gone, NAMES).height < 100
