"""The pictures on the page of a run: sheets of instances, training images, allocation, twins."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exchange import files
from exchange.cutouts import encode_cutout
from exchange.images import encode_png
from exchange.manifest import read_manifest, write_manifest
from exchange.pool_index import PoolIndex, write_index
from exchange.twins import Twins, write_twins
from tests.diSegmenter.conftest import disc_image
from tests.tools.made_up_run import EVIL, NAMES, layout, page, write_made_up_run
from tools.outlines import PASTED
from tools.report import write_report
from tools.run_report import pictures, sprites
from tools.run_report.content import Round

__all__ = ["layout"]


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
    assert records[1][6:] == [None, 32.0, "", True, "01_0001_0002.png", {}]
    sheet = np.asarray(Image.open(f"{layout.root}/report/A/rd01_000.webp").convert("RGB")).astype(int)
    assert sheet.shape == (2 * sprites.SIDE, sprites.COLUMNS * sprites.SIDE, 3)
    red = sheet[: sprites.SIDE, :, 0] - sheet[: sprites.SIDE, :, 1] > 90
    tiles = np.hsplit(red, sprites.COLUMNS)  # discs of growing size, three of a class
    assert all(tile[40, 48] for tile in tiles)  # the middle of an image of 48 x 40
    assert tiles[0].sum() < tiles[1].sum() < tiles[2].sum() > tiles[3].sum()


def test_the_instances_of_a_class_are_side_by_side_on_as_few_sheets_as_hold_them(
    layout, monkeypatch, tmp_path
):
    rows = list(PoolIndex(layout, [1], dropped_too=True))
    write_index(layout, 1, rows[::2] + rows[1::2])
    monkeypatch.setattr(sprites, "PER_SHEET", 3)
    rounds = [Round(1, [], PoolIndex(layout, [1], dropped_too=True), "", None)]
    sheets = sprites.write_sheets(layout, rounds, str(tmp_path / "sheets"), "sheets")
    assert sheets == {id_: [f"sheets/rd01_{id_ - 1:03}"] for id_ in (1, 2, 3, 4)}


def test_each_instance_has_the_measures_that_were_taken_and_its_model_where_there_are_several(layout):
    first, *others = (
        dataclasses.replace(instance, model="other/model")
        for instance in PoolIndex(layout, [1], dropped_too=True)
    )
    write_index(layout, 1, [dataclasses.replace(first, similarity=0.71239, clip_white=20.126), *others])
    page(layout.root)
    told = []
    for round_ in (0, 1):
        script = Path(f"{layout.root}/report/A/rd0{round_}_000.js").read_text()
        records = json.loads(script.removeprefix("showSheet(").removesuffix(")").split(", ", 1)[1])
        told += [record[-1] for record in records[:2]]
    assert records[0][6] == 20.13
    other = {"drawn by": "other/model"}
    assert told == [{"drawn by": "tiny"}, {"drawn by": "tiny"}, {"similarity": 0.712} | other, other]


def test_sheets_are_drawn_once_and_again_only_where_their_images_changed(layout, monkeypatch):
    page(layout.root)
    drawn = []
    real = sprites.sheet
    monkeypatch.setattr(
        sprites, "sheet", lambda *given: drawn.append(given[1].column("round")[0]) or real(*given)
    )
    page(layout.root)
    assert drawn == []
    files.remove(f"{layout.root}/report/A/rd00_000.webp")
    page(layout.root)
    assert drawn == [0]
    write_made_up_run(Path(layout.root), NAMES, per_class=4)
    page(layout.root)
    assert drawn == [0, 0, 1]
    first, *rest = PoolIndex(layout, [1], dropped_too=True)
    for changes in ({"area": first.area - 1}, {"seed": first.seed + 1}):  # cut out or drawn once more
        first = dataclasses.replace(first, **changes)
        write_index(layout, 1, [first, *rest])
        page(layout.root)
    assert drawn == [0, 0, 1, 1, 1]


def test_a_round_s_training_images_are_those_drawn_after_it_and_its_report_is_linked(layout):
    for kind, width in (("training", 30), ("data", 20)):
        record = {"images": [1, 3, 3], "files": ["01_0002_0002.png", "a.png", "<b>"], "categories": [2, 1, 1]}
        picture = encode_png(np.zeros((9, width, 3), np.uint8), record if kind == "training" else None)
        files.write_bytes(f"{layout.pictures_dir}/{kind}_rd01.png", picture)
    files.write_bytes(f"{layout.pictures_dir}/report_rd01.html", b"")
    text = page(layout.root)
    (shown,) = re.findall(r'<img src="([^"]+)" loading="lazy" alt="training images of round 1"', text)
    assert Image.open(f"{layout.root}/{shown}").width == 30
    pasted = re.findall(r'<span class="pasted">(\d): (.*?)</span>', text)
    assert pasted == [
        ("1", '<a href="#class=2">01_0002_0002</a>'),
        ("3", '<a href="#class=1">a</a>, <a href="#class=1">&lt;b&gt;</a>'),
    ]
    shutil.copytree(layout.root, other := f"{layout.root} #2")
    beside = Path(write_report([other], f"{layout.root}.html")).read_text()
    for told, link in ((text, "pictures/report_rd01.html"), (beside, "run%20%232/pictures/report_rd01.html")):
        assert re.findall(r'href="([^"]*report_rd\d+\.html)"', told) == [link]


def test_training_images_are_made_ready_once_and_again_only_where_they_changed_and_no_older_one_stays(
    layout, monkeypatch
):
    def made_for(*levels: int) -> int:
        before = len(made)
        for round_, level in enumerate(levels):
            picture = encode_png(np.full((9, 9, 3), level, np.uint8))
            files.write_bytes(f"{layout.pictures_dir}/training_rd0{round_}.png", picture)
        assert "data:image" not in page(layout.root)
        return len(made) - before

    made: list[Image.Image] = []
    real = pictures._as_webp
    monkeypatch.setattr(pictures, "_as_webp", lambda image: made.append(image) or real(image))
    assert [made_for(1), made_for(1, 1), made_for(1, 1), made_for(1, 2)] == [1, 1, 0, 1]
    (being_written := Path(f"{layout.root}/report/A/training_rd01_ab.webp.x-01.tmp")).touch()
    assert made_for(3, 2) == 1 and being_written.exists()
    assert len(list(being_written.parent.glob("training_*.webp"))) == 2


@pytest.mark.parametrize(
    ("root", "out"),
    [
        ("memory://linked", "memory://linked/report.html"),
        ("memory://linked", "{}/page.html"),
        ("{}/run", "memory://linked/page.html"),
    ],
)
def test_the_report_of_a_round_is_linked_in_full_where_it_or_the_page_is_in_a_bucket(root, out, tmp_path):
    root, out = root.format(tmp_path), out.format(tmp_path)
    link = f"{write_made_up_run(root, NAMES, images=False).pictures_dir}/report_rd01.html"
    files.write_bytes(link, b"")
    text = files.read_bytes(write_report([root], out)).decode()
    assert re.findall(r'href="([^"]*report_rd\d+\.html)"', text) == [link]


def test_how_the_images_of_each_round_were_divided_is_on_the_page(layout):
    for round_, width in ((0, 20), (1, 30)):
        picture = encode_png(np.zeros((9, width, 3), np.uint8))
        files.write_bytes(f"{layout.pictures_dir}/allocation_rd0{round_}.png", picture)
    shown = re.findall(r'"data:image/webp;base64,([^"]+)" alt="allocation of round (\d)"', page(layout.root))
    widths = {number: Image.open(io.BytesIO(base64.b64decode(data))).width for data, number in shown}
    assert widths == {"0": 20, "1": 30}


def test_an_outline_goes_through_the_centres_of_the_pixels_at_the_border(layout):
    thumbnail = np.asarray(sprites._thumbnail(layout, PoolIndex(layout, [0]), 0))
    assert thumbnail.shape == (80, 96, 3)  # twice the image
    drawn = np.argwhere((thumbnail == PASTED).all(-1))
    assert (drawn.min(0).tolist(), drawn.max(0).tolist()) == ([9, 7], [29, 25])


def test_the_outline_of_an_upright_image_is_closed_and_within_its_tile(layout):
    first, *rest = PoolIndex(layout, [0], dropped_too=True)
    triangle = dataclasses.replace(first, width=40, height=80, segmentation=[[5, 10, 34, 10, 5, 69]])
    write_index(layout, 0, [triangle, *rest])
    files.write_bytes(layout.raw(first.file), encode_png(np.zeros((80, 40, 3), np.uint8)))
    thumbnail = np.asarray(sprites._thumbnail(layout, PoolIndex(layout, [0], dropped_too=True), 0))
    assert thumbnail.shape == (96, 48, 3)
    assert (thumbnail[13:83, 6] == PASTED).all()  # its left side, 1.2 x (5 + 1/2) from the edge


def test_of_an_image_that_is_gone_the_cut_out_is_shown_and_grey_without_it(layout):
    pool = PoolIndex(layout, [0], dropped_too=True)
    for row in (0, 1, 2):
        files.remove(layout.raw(pool[row].file))
    red = disc_image(9, ink=(255, 0, 0))
    alpha = np.where(red[..., 1] < 255, 255, 0).astype(np.uint8)
    files.write_bytes(pool.name(1), encode_cutout(red, alpha, [0, 0, 48, 40]))
    large = np.full((4 * sprites.SIDE, 2 * sprites.SIDE), 255, np.uint8)
    files.write_bytes(pool.name(2), encode_cutout(np.dstack([large] * 3), large, [0, 0, *large.shape[::-1]]))
    gone, cut_out, of_large = (sprites._thumbnail(layout, pool, row) for row in (0, 1, 2))
    assert of_large.size == (sprites.SIDE // 2, sprites.SIDE)
    assert gone.getcolors() == [(sprites.SIDE**2, (200, 200, 200))]
    colours = {colour for _, colour in cut_out.getcolors(1 << 16)}
    assert colours == {(255, 0, 0), (200, 200, 200), (235, 235, 235)}


def test_guided_images_stand_beside_their_twins_with_the_criterion_of_both(layout):
    names = [layout.instance_name(1, i, 2) for i in (1, 2)]
    whole = read_manifest(layout.manifest(1, 0, 1))
    files.remove(layout.manifest(1, 0, 1))
    for shard in (0, 1):
        part = {"shard": shard, "num_shards": 2, "instances": whole.instances[shard::2]}
        write_manifest(layout, dataclasses.replace(whole, **part))
    grey = [np.full((40, 48, 3), level, np.uint8) for level in (50, 150, 0)]
    write_twins(layout.twins(1), Twins([*names, "of no manifest.png"], [0.125, None, 0.5]), grey)
    files.remove(layout.raw(names[1]))
    text = page(layout.root)
    told = re.sub("<[^>]*>", " ", text[text.index('id="twins"') : text.index('id="training"')])
    first, second = re.findall(r"(entropy .*\n.*\n.*\n.*)", told)
    caption = f"red disc : a photo of red disc, seed {2**62 + 2}; at the first guided step 0.500"
    assert first.split() == ["entropy", "0.125", "entropy", "0.750", *caption.split()]
    assert html.unescape(second).split()[:4] == ["entropy", "is", "gone", "entropy"]
    assert EVIL in html.unescape(second)
    shown_pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")).astype(int)
        for shown in re.findall(r'"data:image/webp;base64,([^"]+)"', text)
    ]
    without, guided, other = shown_pictures
    assert abs(without - 50).max() < 9 and abs(other - 150).max() < 9 and without.shape == (107, 128, 3)
    assert guided[53, 64, 0] - guided[53, 64, 1] > 90  # a red disc
    settings = files.read_bytes(layout.settings_file)
    files.write_bytes(
        layout.settings_file, settings.replace(b"settings:", b"settings:\n  GENERATOR.CRITERION: max")
    )
    assert "max 0.125" in page(layout.root)
    twins = files.read_bytes(layout.twins(1))
    middle = twins.index(b"IDAT") + 20
    for damaged in (twins[:-20], twins[:middle] + b"damaged" + twins[middle + 7 :]):
        files.write_bytes(layout.twins(1), damaged)
        assert 'id="twins"' not in page(layout.root)
