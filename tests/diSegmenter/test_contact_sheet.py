import numpy as np

from diSegmenter.images import write_alpha
from diSegmenter.report import Entry, contact_sheet, draw_contact_sheet
from tests.diSegmenter.conftest import disc_image, generate, pool_instance


def test_kept_ones_are_framed_green_and_dropped_ones_red():
    image = disc_image(8)
    alpha = np.where(image[..., 1] < 255, 255, 0).astype(np.uint8)
    green, red = (
        np.asarray(draw_contact_sheet([Entry(image, alpha, "disc", 26.0, reason)], "round 0"))
        for reason in ("", "CLIP score")
    )
    differ = (green != red).any(2)
    balance = np.asarray(green, int)[..., 1] - np.asarray(green, int)[..., 0]
    assert balance[differ].max() > 0
    balance = np.asarray(red, int)[..., 1] - np.asarray(red, int)[..., 0]
    assert balance[differ].min() < 0


def test_the_sheet_of_a_round_shows_a_spread_of_it(layout):
    instances = []
    for item in generate(layout, 0, 80):
        write_alpha(layout.segmented(item.file), np.zeros((40, 48), np.uint8), {})
        instances.append(pool_instance(0, item.category_id, item.instance))
    names = {3: "red disc", 7: "blue disc"}
    sheet = contact_sheet(layout, "round 0", instances, names)
    assert sheet.width > 1000 and 1000 < sheet.height < 1300  # every second one: seven rows
    gone = [pool_instance(9, 3, number) for number in range(80)]
    assert contact_sheet(layout, "round 9", gone, names).height < 100
