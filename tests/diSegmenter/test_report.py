import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from diSegmenter.checks import Checks
from diSegmenter.finish_round import judge_round
from diSegmenter.images import write_alpha
from diSegmenter.report import write_pictures
from exchange import files
from tests.diSegmenter.conftest import generate, pool_instance

NAMES = {3: "red disc", 7: "<blue> disc"}


class Page(HTMLParser):
    """Cells of the tables, pictures, and whatever would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[bytes] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag == "img":
            data = re.fullmatch(r"data:image/png;base64,(.*)", dict(attributes)["src"])
            self.pictures.append(base64.b64decode(data[1]))
        self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def report(layout, scores):
    instances = []
    for item, score in zip(generate(layout, 0, len(scores)), scores, strict=True):
        write_alpha(layout.segmented(item.file), np.full((40, 48), 255, np.uint8), {})
        instances.append(pool_instance(0, item.category_id, item.instance, clip_black=score))
    judged = judge_round(layout, 0, instances, Checks(25.0, (0.0, 1.0), 0, False))
    write_pictures(layout, judged, NAMES)
    return files.read_bytes(files.join(layout.pictures_dir, "report_rd00.html")).decode()


def test_the_report_counts_what_was_asked_made_and_kept(layout):
    page = Page(report(layout, [30, 20, 31, 21, 32, 33]))
    assert ["CLIP score", "2"] in page.rows
    assert page.rows[-2:] == [["<blue> disc", "3", "3", "1"], ["red disc", "3", "3", "3"]]


def test_the_report_carries_its_pictures_with_it(layout):
    text = report(layout, [30, 20, 31, 21])
    pictures = [Image.open(io.BytesIO(data)) for data in Page(text).pictures]
    assert len(pictures) == 2 and all(min(picture.size) > 100 for picture in pictures)
    assert "<svg" in text and not re.search(r'(src|href)="(?!data:)', text)


def test_a_round_with_nothing_kept_has_a_report(layout):
    assert "0 of 2 instances kept" in report(layout, [1, 2])
