import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diSegmenter.filter import InstanceFilter
from diSegmenter.finish_round import JudgedRound, judge_round
from diSegmenter.report import contact_sheet, instance_sheet, write_pictures
from exchange import files
from exchange.images import encode_png
from exchange.manifest import Manifest, write_manifest
from tests.diSegmenter.conftest import generate, pool_instance

FILTER = InstanceFilter(25.5, (0.0, 1.0), 0, False)
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
    generated = [item for shard in range(3) for item in generate(layout, 0, len(scores), shard, 3)]
    for item, score in zip(sorted(generated, key=lambda i: i.instance), scores, strict=True):
        mask = encode_png(np.full((40, 48), 255, np.uint8))
        files.write_bytes(layout.segmented(item.file), mask)
        scores_of = {"clip_white": None if score is None else 0.0, "clip_black": score}
        instances.append(pool_instance(0, item.category_id, item.instance, **scores_of))
    judged = judge_round(layout, 0, instances, FILTER)
    write_pictures(layout, dataclasses.replace(judged, unreadable=["a.png", "b.png", "c.png"]), NAMES)
    return files.read_bytes(files.join(layout.pictures_dir, "report_rd00.html")).decode()


def test_the_report_counts_what_was_asked_made_and_kept_of_the_classes_that_lose_most_first(layout):
    text = report(layout, [20, 30, 31, 33, 34, 32, 35])
    assert (
        "Asked for: 7. Kept is what has a CLIP score of 25.5 or more, an object that covers less than 100 %"
        in text
    )
    page = Page(text)
    assert page.rows[1:3] == [["does not decode", "3"], ["CLIP score", "1"]]
    assert page.rows[-2:] == [["red disc", "4", "4", "3"], ["<blue> disc", "3", "3", "3"]]


def test_every_class_that_was_asked_for_or_made_is_in_one_of_three_tables(layout):
    names = {number: f"class {40 - number:02}" for number in range(1, 36)}
    names |= {36: "neither"}
    asked = {number: 0 if number in (34, 36) else 2 for number in names}
    write_manifest(layout, Manifest(0, 0, 1, True, asked, [], 1.0))
    made = [pool_instance(0, 35, number, reason="judge" * (number == 2)) for number in range(3)]
    made.append(pool_instance(0, 34, 0))
    write_pictures(layout, JudgedRound(0, FILTER, made, []), names)
    page = Page(files.read_bytes(f"{layout.pictures_dir}/report_rd00.html").decode())
    head = ["class", "asked", "made", "kept"]
    rows = page.rows[page.rows.index(head) :]
    assert rows.count(head) == 3
    lost = [[names[number], "2", "0", "0"] for number in range(33, 0, -1)]
    others = [[names[35], "2", "3", "2"], [names[34], "0", "1", "1"]]
    assert [row for row in rows if row != head] == lost + others


def test_the_histogram_shows_kept_and_dropped_scores_and_the_threshold_between_them(layout):
    text = report(layout, [0, 30, 21, 31, 33, 32])
    bars = re.findall(r'<rect x="(.*?)" .*? height="(.*?)" fill="(.*?)"/>', text)
    places = {
        colour: [float(x) for x, height, c in bars if c == colour and float(height)] for *_, colour in bars
    }
    assert {height for _, height, _ in bars} == {"0.0", "200.0"}  # one of each score
    threshold = float(re.search(r'<path d="M(.*?) 0V', text)[1])
    assert threshold == pytest.approx(900 * (25.5 + 0.5) / (33.5 + 0.5), abs=0.1)
    assert re.findall("<text.*?>(.*?)</text>", text) == ["-0.5", "33.5", "25.5"]
    assert len(places["#16823c"]) == 4 and min(places["#16823c"]) > threshold
    assert len(places["#be2828"]) == 2 and max(places["#be2828"]) < threshold


@pytest.mark.parametrize(
    ("scores", "shown"), [((26, 30), True), ((26.01, 30), False), ((20, 25), True), ((20, 24.99), False)]
)
def test_the_histogram_ends_half_a_point_from_the_scores_and_shows_a_threshold_up_to_there(
    layout, scores, shown
):
    assert ("<path" in report(layout, scores)) == shown


def test_the_dropped_stand_on_the_kept_and_the_highest_bar_fills_the_picture(layout):
    text = report(layout, [25.48, 25.5, 25.6, 0, 40])
    bars = re.findall(r'<rect x=".*?" y="(.*?)" width=".*?" height="(.*?)" fill="(.*?)"/>', text)
    highest = 200.0
    for kept, dropped in zip(bars[::2], bars[1::2], strict=True):
        (top, height), (upper_top, upper_height) = (map(float, bar[:2]) for bar in (kept, dropped))
        assert (kept[2], dropped[2]) == ("#16823c", "#be2828")
        assert (top + height, upper_top + upper_height) == pytest.approx((200, top), abs=0.11)
        highest = min(highest, upper_top)
    assert highest == 0


def test_the_report_carries_a_picture_of_what_was_kept_and_one_of_what_was_dropped(layout, monkeypatch):
    shown = []

    def spy(layout, title, some, names):
        shown.append((title, [instance.clip_black for instance in some]))
        return instance_sheet(layout, title, some, names)

    monkeypatch.setattr("diSegmenter.report.instance_sheet", spy)
    text = report(layout, [30, 20, 31, 21])
    assert [scores for title, scores in shown if not title] == [[30, 31], [20, 21]]
    pictures = [Image.open(io.BytesIO(data)) for data in Page(text).pictures]
    assert len(pictures) == 2 and all(min(picture.size) > 100 for picture in pictures)
    assert "<svg" in text and not re.search(r'(src|href)="(?!data:)', text)


def test_a_round_with_nothing_kept_has_a_report(layout):
    text = report(layout, [1, 2])
    assert "0 of 2 instances kept" in text
    assert "<h2>Dropped</h2>" in text and "<h2>Kept</h2>" not in text
    assert "<rect" in text and "<path" not in text  # the threshold is far from these scores


def test_a_round_without_scores_says_so(layout):
    assert "<p>Nothing was scored.</p>" in report(layout, [None, None])


def test_a_caption_stands_below_its_picture():
    pictures = [Image.new("RGB", (90, 90))]
    with_it, without = (np.asarray(contact_sheet(pictures, [name], "")) for name in ("name", ""))
    lowest_of_picture = np.flatnonzero((without == 0).all(axis=2).any(axis=1)).max()
    written = np.flatnonzero((with_it != without).any(axis=(1, 2)))
    assert len(written) and lowest_of_picture < written.min()


def test_names_on_a_sheet_have_their_own_letters():
    pictures = [Image.new("RGB", (90, 90))]
    sheets = [contact_sheet(pictures, [name], name).tobytes() for name in "äÖ"]
    assert sheets[0] != sheets[1]
