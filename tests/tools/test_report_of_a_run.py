"""The page of a run: what it says, what it escapes, and what it draws again."""

import base64
import csv
import dataclasses
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exchange import files, pool_features
from exchange.cutouts import encode_cutout
from exchange.decisions import Decision, write_decisions
from exchange.errors import UserError
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.manifest import read_manifest, write_manifest
from exchange.pool_index import PoolIndex, write_index
from exchange.twins import Twins, write_twins
from tests.diSegmenter.conftest import disc_image
from tests.tools.made_up_run import ap_of, write_made_up_run
from tools import report
from tools.report import write_report
from tools.run_report import sprites
from tools.run_report.chart import HEIGHT, WIDTH, Chart, Line

EVIL = "<script>alert(1)</script>"
NAMES = ["red disc", EVIL, "blue disc", "pink disc"]


class Rows(HTMLParser):
    """The cells of every row of every table, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def layout(tmp_path) -> RunLayout:
    return write_made_up_run(tmp_path / "run", NAMES)


def page(*roots: str) -> str:
    return Path(write_report(roots)).read_text()


def test_the_page_tells_scores_and_counts_of_each_round_beside_the_control(layout):
    rows = [row for row in Rows(page(layout.root)).rows if row]
    results = rows[: next(n for n, row in enumerate(rows) if row[0] == "class")]
    told = {row[0]: row[1:] for row in results}
    for round_, name in ((-1, "start"), (0, "control"), (0, "round 0"), (1, "round 1")):
        mean = sum(ap_of(round_, i) for i in range(1, 5)) / 4
        assert told[name][:4] == [f"{mean:.1f}", f"{mean + round_:.1f}", "", f"{mean:.1f}"]
    assert told["round 1"][4:7] == ["12", "12", "8"]
    assert "Kept is what has a CLIP score of 25 or more, an object that covers more than 5 %" in page(
        layout.root
    )


def test_the_page_tells_where_the_time_of_each_round_went_and_the_share_of_each_work(layout):
    drawn = read_manifest(layout.manifest(0, 0, 1))
    files.remove(layout.manifest(0, 0, 1))
    for shard, seconds in ((0, 60.0), (1, 30.0)):
        write_manifest(layout, dataclasses.replace(drawn, shard=shard, num_shards=2, seconds=seconds))
    for process, minutes in (("segment_0of2", 1.5), ("segment_1of2", 3.5), ("train", 13.5)):
        work = "training" if process == "train" else "cutting out"
        path = f"{layout.seconds_dir}/{process}.json"
        files.write_json(path, {"0": {work: 60 * minutes}, "-1": {"evaluating": 0.0}})
    rows = [row for row in Rows(page(layout.root)).rows if row]
    head = rows.index(["", "drawing", "cutting out", "training", "evaluating"])
    assert rows[head + 1 : head + 5] == [
        ["start", "0.0", "0.0", "0.0", "0.0"],
        ["round 0", "1.5", "5.0", "13.5", "0.0"],
        ["round 1", "1.0", "0.0", "0.0", "0.0"],
        ["share", "12 %", "24 %", "64 %", "0 %"],
    ]


def test_the_table_of_classes_lands_as_csv_with_everything_round_by_round(layout):
    page(layout.root)
    text = files.read_bytes(f"{layout.root}/report/classes.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["class"] for row in rows] == NAMES
    assert [row["group"] for row in rows] == ["common", "frequent", "rare", "common"]
    for i, row in enumerate(rows, start=1):
        counts = [row[name] for name in ("training instances", "asked", "made", "kept", "dropped for")]
        assert counts == [str(10 * i), "6", "6", "4", "CLIP score 2"]
        aps = [float(row[f"AP {when}"]) for when in ("start", "round 0", "round 1")]
        assert aps == [ap_of(round_, i) for round_ in (-1, 0, 1)]
        assert float(row["change"]) == pytest.approx(aps[-1] - aps[0]) and float(row["drift"]) == i / 1000


def test_the_table_tells_what_the_objects_of_a_class_are_taken_for_the_most_frequent_first(layout):
    taken_for = [[1, 12], [3, 4], [None, 2], [2, 1], [4, 1]]
    content = {"classes": [{"id": 1, "taken_for": taken_for}, {"id": 2, "taken_for": []}]}
    files.write_json(layout.scores("discs", "model.pth"), content)
    rows = Rows(page(layout.root)).rows
    heads, first, second = (
        next(row for row in rows if row[:2] == start and len(row) > 9)
        for start in (["class", "group"], ["red disc", "common"], [EVIL, "frequent"])
    )
    of_first, of_second = (dict(zip(heads, row, strict=True)) for row in (first, second))
    assert of_first["recognised %"] == "60"
    assert of_first["taken for"] == f"blue disc 20 %, nothing 10 %, {EVIL} 5 %"
    assert of_second["recognised %"] == of_second["taken for"] == ""
    table = list(csv.DictReader(io.StringIO(Path(f"{layout.root}/report/classes.csv").read_text())))
    assert [row["recognised %"] for row in table] == ["60.0", "", "", ""]
    assert table[0]["taken for"] == of_first["taken for"]


@pytest.mark.parametrize("content", [[], {}, {"classes": [{"id": 1, "taken_for": [3]}]}])
def test_scores_that_are_damaged_are_named(content, layout):
    path = layout.scores("discs", "model.pth")
    files.write_json(path, content)
    with pytest.raises(UserError, match=re.escape(path)):
        page(layout.root)


def test_the_quality_of_the_pool_is_told_round_by_round_and_class_by_class_as_far_as_it_is_known(layout):
    def told():
        rows = [row for row in Rows(page(layout.root)).rows if row]
        place = next(n for n, row in enumerate(rows) if row[0] == "round")
        text = files.read_bytes(f"{layout.root}/report/classes.csv").decode()
        return rows[place : place + 4], list(csv.DictReader(io.StringIO(text)))

    (head, *rounds), classes = told()
    assert head == ["round", "made", "kept", "CLIP 5, 50, 95 %", "dropped: CLIP score"]
    assert rounds[0] == ["0", "12", "8", "30.0 30.0 30.0", "33.3 %"]
    assert {row["CLIP score"] for row in classes} == {"30.0"} and "distance" not in classes[0]
    assert "Vendi" not in page(layout.root) and "similarity" not in page(layout.root)
    for round_ in (0, 1):
        names = PoolIndex(layout, [round_]).column("file").tolist()
        pool_features.begin(layout, {"model": "a"})
        pool_features.add_features(layout, round_, names, np.eye(len(names))[::-1])
    (head, *rounds), classes = told()
    assert head[4:8] == ["distance", "Vendi", "Vendi of pool", "near-duplicates"]
    assert [row[4:8] for row in rounds] == [
        ["1.000", "2.0", "2.0", "0.0 %"],
        ["1.000", "2.0", "2.0", "100.0 %"],
        ["0.667", "2.0", "", "50.0 %"],  # of six pairs of a class two are of the same
    ]
    for row in classes:
        assert float(row["distance"]) == pytest.approx(2 / 3) and float(row["Vendi"]) == pytest.approx(2)
        assert row["near-duplicates, %"] == "50.0"
    assert "the Vendi score the number of instances" in page(layout.root)


def test_a_run_without_a_pool_has_no_word_about_its_quality(layout):
    for round_ in (0, 1):
        files.remove(layout.annotations_done(round_))
    assert 'id="pool"' not in page(layout.root)


def test_a_selection_is_told_round_by_round_and_class_by_class(layout):
    assert 'id="selection"' not in page(layout.root)
    for round_, scores in ((0, [0.1, 0.2, 0.3, -0.2]), (1, [0.5])):
        rows = [
            Decision(n, 0, f"{round_}{id_}.png", id_, score, -0.05, score > 0)
            for n, score in enumerate(scores)
            for id_ in ((1, 3) if n == 3 else (1,))
        ]
        write_decisions(layout, round_, 10 * round_ + 10, rows)
    rows = [row for row in Rows(page(layout.root)).rows if row]
    assert ["round 0", "4", "75.0 %", "0.025", "0.150", "0.225", "1"] in rows
    assert ["round 1", "1", "100.0 %", "0.500", "0.500", "0.500", "0"] in rows
    assert rows[rows.index(["class", "group", "pasted", "refused"]) + 1 :][:2] == [
        ["blue disc", "rare", "1", "100.0 %"],
        ["red disc", "common", "5", "20.0 %"],
    ]
    text = files.read_bytes(f"{layout.root}/report/classes.csv").decode()
    assert [row["refused, %"] for row in csv.DictReader(io.StringIO(text))] == ["20.0", "", "100.0", ""]


def test_what_comes_from_outside_shows_as_text_on_the_page_and_in_what_it_loads(layout):
    text = page(layout.root)
    found = Rows(text)
    assert EVIL in [row[0] for row in found.rows if row] and "<b>raw</b>" in sum(found.rows, [])
    assert found.tags.count("script") == 1 and "b" not in found.tags
    loaded = Path(f"{layout.root}/report/A/rd00_000.js").read_text()
    name, records = json.loads(f"[{re.fullmatch(r'showSheet[(](.*)[)]', loaded)[1]}]")
    assert name == "report/A/rd00_000" and records[3][2] == f"a photo of {EVIL}"


def test_winners_and_losers_are_the_classes_that_moved_most(layout):
    rows = Rows(page(layout.root)).rows
    tables = [n for n, row in enumerate(rows) if row[:3] == ["class", "group", "AP from"]]
    gained, lost = (rows[start + 1 : start + 3] for start in tables)
    assert [row[0] for row in gained] == ["blue disc", "red disc"] and gained[0][2:] == [
        "50.0",
        "50.6",
        "+0.6",
    ]
    assert [row[0] for row in lost] == ["pink disc", EVIL]


def test_each_instance_is_on_a_sheet_with_what_is_on_record_about_it(layout):
    page(layout.root)
    script = Path(f"{layout.root}/report/A/rd01_000.js").read_text()
    records = json.loads(script.removeprefix("showSheet(").removesuffix(")").split(", ", 1)[1])
    seed = str(2**62 + 1)  # as text: a browser's numbers have 53 bits
    assert records[0] == [
        1,
        1,
        "a photo of red disc",
        seed,
        0.5,
        0.75,
        20.0,
        10.0,
        "CLIP score",
        True,
        "01_0001_0001.png",
        {},
    ]
    assert records[1][6:] == [None, 30.0, "", True, "01_0001_0002.png", {}]
    sheet = np.asarray(Image.open(f"{layout.root}/report/A/rd01_000.webp").convert("RGB")).astype(int)
    assert sheet.shape == (2 * sprites.SIDE, sprites.COLUMNS * sprites.SIDE, 3)
    red = sheet[: sprites.SIDE, :, 0] - sheet[: sprites.SIDE, :, 1] > 90
    tiles = np.hsplit(red, sprites.COLUMNS)  # discs of growing size, three of a class
    assert all(tile[40, 48] for tile in tiles)  # the middle of an image of 48 x 40
    assert tiles[0].sum() < tiles[1].sum() < tiles[2].sum() > tiles[3].sum()


def test_each_instance_has_the_measures_that_were_taken_and_its_model_where_there_are_several(layout):
    first, *others = (
        dataclasses.replace(instance, model="other/model")
        for instance in PoolIndex(layout, [1], dropped_too=True)
    )
    write_index(layout, 1, [dataclasses.replace(first, similarity=0.71239), *others])
    page(layout.root)
    told = []
    for round_ in (0, 1):
        script = Path(f"{layout.root}/report/A/rd0{round_}_000.js").read_text()
        records = json.loads(script.removeprefix("showSheet(").removesuffix(")").split(", ", 1)[1])
        told += [record[-1] for record in records[:2]]
    other = {"drawn by": "other/model"}
    assert told == [{"drawn by": "tiny"}, {"drawn by": "tiny"}, {"similarity": 0.712} | other, other]


def test_sheets_are_drawn_once_and_again_only_where_their_images_changed(layout, monkeypatch):
    page(layout.root)
    drawn = []
    real = sprites.sheet
    monkeypatch.setattr(sprites, "sheet", lambda *given: drawn.append(given[1].rounds[0]) or real(*given))
    page(layout.root)
    assert drawn == []
    files.remove(f"{layout.root}/report/A/rd00_000.webp")
    page(layout.root)
    assert drawn == [0]
    write_made_up_run(Path(layout.root), NAMES, per_class=4)
    page(layout.root)
    assert drawn == [0, 0, 1]
    first, *rest = PoolIndex(layout, [1], dropped_too=True)  # cut out once more, by another model
    write_index(layout, 1, [dataclasses.replace(first, area=first.area - 1), *rest])
    page(layout.root)
    assert drawn == [0, 0, 1, 1]


def test_a_round_s_training_images_are_those_drawn_after_it_and_its_report_is_linked(layout):
    for kind, width in (("training", 30), ("data", 20)):
        record = {"images": [1, 3, 3], "files": ["01_0002_0002.png", "a.png", "<b>"], "categories": [2, 1, 1]}
        picture = encode_png(np.zeros((9, width, 3), np.uint8), record if kind == "training" else None)
        files.write_bytes(f"{layout.pictures_dir}/{kind}_rd01.png", picture)
    files.write_bytes(f"{layout.pictures_dir}/report_rd01.html", b"")
    text = page(layout.root)
    (shown,) = re.findall(r'"data:image/webp;base64,([^"]+)"', text)
    assert Image.open(io.BytesIO(base64.b64decode(shown))).width == 30
    pasted = re.findall(r'<span class="pasted">(\d): (.*?)</span>', text)
    assert pasted == [
        ("1", '<a href="#class=2">01_0002_0002</a>'),
        ("3", '<a href="#class=1">a</a>, <a href="#class=1">&lt;b&gt;</a>'),
    ]
    assert re.findall(r'href="([^"]*report_rd\d+\.html)"', text) == ["pictures/report_rd01.html"]


def test_how_the_images_of_each_round_were_divided_is_on_the_page(layout):
    for round_, width in ((0, 20), (1, 30)):
        picture = encode_png(np.zeros((9, width, 3), np.uint8))
        files.write_bytes(f"{layout.pictures_dir}/allocation_rd0{round_}.png", picture)
    shown = re.findall(r'"data:image/webp;base64,([^"]+)" alt="allocation of round (\d)"', page(layout.root))
    widths = {number: Image.open(io.BytesIO(base64.b64decode(data))).width for data, number in shown}
    assert widths == {"0": 20, "1": 30}


def test_of_an_image_that_is_gone_the_cut_out_is_shown_and_grey_without_it(layout):
    pool = PoolIndex(layout, [0], dropped_too=True)
    for row in (0, 1):
        files.remove(layout.raw(pool[row].file))
    red = encode_cutout(disc_image(9, ink=(255, 0, 0)), np.full((40, 48), 255, np.uint8), [0, 0, 48, 40])
    files.write_bytes(pool.name(1), red)
    gone, cut_out = (sprites._thumbnail(layout, pool, row) for row in (0, 1))
    assert gone.getcolors() == [(sprites.SIDE**2, (200, 200, 200))]
    assert (255, 0, 0) in [colour for _, colour in cut_out.getcolors(1 << 16)]


def test_guided_images_stand_beside_their_twins_with_the_criterion_of_both(layout):
    names = [layout.instance_name(1, i, 2) for i in (1, 2)]
    grey = [np.full((40, 48, 3), level, np.uint8) for level in (50, 150)]
    write_twins(layout.twins(1), Twins(names, [0.125, None]), grey)
    files.remove(layout.raw(names[1]))
    text = page(layout.root)
    told = re.sub("<[^>]*>", " ", text[text.index('id="twins"') : text.index('id="training"')])
    first, second = re.findall(r"(entropy .*\n.*\n.*\n.*)", told)
    caption = f"red disc : a photo of red disc, seed {2**62 + 2}; at the first guided step 0.500"
    assert first.split() == ["entropy", "0.125", "entropy", "0.750", *caption.split()]
    assert html.unescape(second).split()[:4] == ["entropy", "is", "gone", "entropy"]
    assert EVIL in html.unescape(second)
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")).astype(int)
        for shown in re.findall(r'"data:image/webp;base64,([^"]+)"', text)
    ]
    without, guided, other = pictures
    assert abs(without - 50).max() < 9 and abs(other - 150).max() < 9 and without.shape == (107, 128, 3)
    assert guided[53, 64, 0] - guided[53, 64, 1] > 90  # a red disc
    settings = files.read_bytes(layout.settings_file)
    files.write_bytes(
        layout.settings_file, settings.replace(b"settings:", b"settings:\n  GENERATOR.CRITERION: max")
    )
    assert "max 0.125" in page(layout.root)
    damaged = files.read_bytes(layout.twins(1))[:-20]
    files.write_bytes(layout.twins(1), damaged)
    assert 'id="twins"' not in page(layout.root)


def test_two_runs_stand_side_by_side_with_their_difference_and_what_they_are_set_to(layout, tmp_path):
    other = write_made_up_run(tmp_path / "other", NAMES[:3], rounds=1, per_class=4)
    settings = files.read_bytes(other.settings_file).replace(b"MAX_ITER: 10", b"MAX_ITER: 77\n  SEED: 0")
    files.write_bytes(other.settings_file, settings)
    rows = Rows(page(layout.root, other.root)).rows
    heads = next(row for row in rows if row[:2] == ["class", "group"] and "difference" in row)
    [blue, pink] = (
        next(r for r in rows if r[0] == name and len(r) == len(heads)) for name in ("blue disc", "pink disc")
    )
    of_blue = dict(zip(heads, blue, strict=True))
    assert of_blue["A AP"] == f"{ap_of(1, 3):.1f}" and of_blue["B AP"] == f"{ap_of(0, 3):.1f}"
    assert of_blue["difference"] == f"{ap_of(0, 3) - ap_of(1, 3):.1f}"
    assert pink[-1] == ""  # the other run has none
    assert ["SOLVER.MAX_ITER", "20", "77", "90000"] in rows
    assert "SEED" not in [row[0] for row in rows if row]  # as by default
    assert Path(f"{layout.root}/comparison/B/rd00_000.webp").exists()


def test_the_csv_of_several_runs_has_the_columns_of_each_in_full_and_a_third_run_decides_the_difference(
    layout, tmp_path
):
    for round_ in (0, 1):
        taken_for = {"classes": [{"id": i, "taken_for": [[i, 1]]} for i in (3, 4)]}
        files.write_json(layout.scores("discs", "model.pth"), taken_for)
        rows = [[Decision(0, 0, f"{i}.png", i, 0.5, 0.0, i == 3)] for i in (3, 4)]
        write_decisions(layout, round_, 10 * round_ + 10, sum(rows, []))
    others = [
        write_made_up_run(tmp_path / f"of {rounds} rounds", NAMES[:3], rounds, per_class=4)
        for rounds in (1, 3)
    ]
    write_decisions(others[1], 0, 10, [Decision(0, 0, "3.png", 3, 0.5, 0.9, False)])
    text = page(layout.root, *(other.root for other in others))
    table = csv.DictReader(io.StringIO(files.read_bytes(f"{layout.root}/comparison/classes.csv").decode()))
    *_, blue, pink = table
    counts = ("asked", "made", "kept", "dropped for")
    ours = {"asked": "6", "made": "6", "kept": "4", "dropped for": "CLIP score 2", "CLIP score": "30.0"}
    ours |= {"recognised %": "100.0"}
    for row, refused in ((blue, "0.0"), (pink, "100.0")):
        assert {name: row[f"A {name}"] for name in ours} == ours and row["A refused, %"] == refused
    for label, rounds in (("B", 1), ("C", 3)):
        expected = [str(4 * rounds)] * 2 + [str(3 * rounds), f"CLIP score {rounds}"]
        assert [blue[f"{label} {name}"] for name in counts] == expected
        assert float(blue[f"{label} change"]) == pytest.approx(ap_of(rounds - 1, 3) - ap_of(-1, 3))
        assert (blue[f"{label} CLIP score"], blue[f"{label} recognised %"]) == ("30.0", "")
        assert [pink[f"{label} {name}"] for name in counts] == ["0", "0", "0", ""]
        for name in ("change", "drift", "CLIP score", "recognised %"):
            assert pink[f"{label} {name}"] == ""
    assert (blue["C refused, %"], pink["C refused, %"]) == ("100.0", "") and "B refused, %" not in blue
    shown = next(row for row in Rows(text).rows if row[:1] == ["blue disc"] and len(row) > 9)
    assert shown[-1] == f"{ap_of(2, 3) - ap_of(1, 3):.1f}"


def test_a_run_of_which_little_is_there_yet_has_a_page(tmp_path):
    layout = RunLayout(str(tmp_path))
    files.write_bytes(layout.settings_file, b"settings: {}\nversions: {}\n")
    assert "Nothing was trained or evaluated yet." in page(layout.root)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "holds no run, as it has no run.yaml"),
        (["a", "a/"], "the run a is given twice"),
        (["a", "--out", "page.htm"], "ends with .html"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(arguments, sentence, call):
    with pytest.raises(UserError, match=sentence):
        call(report, *arguments)


@pytest.mark.parametrize("content", [b"settings: {}", b"versions: {}\nsettings: []", b"a"])
def test_settings_that_lack_a_part_are_one_sentence(content, tmp_path):
    layout = RunLayout(str(tmp_path))
    files.write_bytes(layout.settings_file, content)
    with pytest.raises(UserError, match=r"run\.yaml does not hold the settings and versions of a run"):
        page(layout.root)


def test_a_chart_reaches_from_its_lowest_to_its_highest_value_and_thins_out_what_is_long():
    points = [(n, (n - 50) ** 2) for n in range(101)]
    chart = Chart("a", [Line("b", points, "red"), Line("c", [(0, 5), (200, 5)], "blue")])
    path = [tuple(map(float, point.split(","))) for point in chart.path(chart.lines[0]).split()]
    assert path[0] == (0, 0) and path[50] == (WIDTH / 4, HEIGHT) and path[-1] == (WIDTH / 2, 0)
    assert chart.bounds() == ("0", "200", "0", "2.5e+03")
    many = Chart("a", [Line("b", [(n, n) for n in range(100_000)], "red")])
    last = many.path(many.lines[0]).split()
    assert len(last) < 405 and last[-1] == f"{WIDTH:.1f},0.0"
