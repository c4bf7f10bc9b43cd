import io

import numpy as np
from PIL import Image

from diSegmenter.checks import Checks
from diSegmenter.contact_sheet import Entry, draw_contact_sheet, write_contact_sheet
from diSegmenter.finish_round import finish_round
from exchange import files
from tests.diSegmenter.conftest import CATEGORIES, disc_image, generate
from tests.diSegmenter.test_finish_round import cut_out


def test_kept_ones_are_framed_green_and_dropped_ones_red():
    image = disc_image(8)
    alpha = np.where(image[..., 1] < 255, 255, 0).astype(np.uint8)
    green, red = (
        np.asarray(draw_contact_sheet([Entry(image, alpha, "disc", 26.0, reason)], "round 0"))
        for reason in ("", "CLIP score")
    )
    differ = (green != red).any(2)
    assert differ.any()
    assert (green[differ] @ [-1, 1, 0]).max() > 0 > (red[differ] @ [-1, 1, 0]).min()


def test_the_sheet_of_a_round_shows_a_spread_of_it(layout):
    cut_out(layout, generate(layout, 0, 80), [30.0, 20.0] * 40)
    checks = Checks(25.0, (0.0, 1.0), 0, False)
    finish_round(layout, 0, checks, CATEGORIES, [0])
    names = {category["id"]: category["name"] for category in CATEGORIES}
    write_contact_sheet(layout, 0, names)
    sheet = Image.open(io.BytesIO(files.read_bytes(files.join(layout.pictures_dir, "generated_rd00.png"))))
    assert sheet.width > 1000 and 1000 < sheet.height < 1300  # every second one: seven rows
