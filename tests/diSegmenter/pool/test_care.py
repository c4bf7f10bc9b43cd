"""Verify, prune, pack, merge and export, on a pool of two rounds."""

import dataclasses
import os
import sys

import numpy as np
import pytest

from diSegmenter.annotate import lvis_file, outline
from diSegmenter.images import decode_rgba, encode_cutout
from diSegmenter.pool.move import export_coco, export_folders, merge, pack
from diSegmenter.pool.prune import prune_dropped, prune_duplicates, prune_originals
from diSegmenter.pool.verify import verify
from exchange import files
from exchange.annotations import read_annotations
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, write_index
from tests.diSegmenter.conftest import CATEGORIES, disc_image, pool_instance
from tools import pool as command

IDS = {category["id"] for category in CATEGORIES}
NAMES = {category["id"]: category["name"] for category in CATEGORIES}


@pytest.fixture
def layout(tmp_path):
    """A pool of two rounds with three kept discs each, and one that was dropped."""
    layout = RunLayout(str(tmp_path / "run"))
    for round_ in (0, 1):
        rows = []
        for number in range(4):
            category = CATEGORIES[number % 2]["id"]
            name = layout.instance_name(round_, category, number)
            image = disc_image(5 + number + 4 * round_)
            alpha = np.where(image[..., 1] < 255, 255, 0).astype(np.uint8)
            found = outline(alpha)
            files.write_bytes(layout.cutout(name), encode_cutout(image, alpha, found["bbox"]))
            files.write_bytes(layout.raw(name), b"raw")
            files.write_bytes(layout.segmented(name), b"alpha")
            reason = "CLIP score" if number == 3 else ""
            values = found | {"clip_black": 26.0 + number, "reason": reason}
            rows.append(pool_instance(round_, category, number, **values))
        write_index(layout, round_, rows)
        pool = PoolIndex(layout, range(round_ + 1))
        files.write_json(layout.annotations(round_), lvis_file(pool, CATEGORIES, round_))
        files.write_done(layout.annotations_done(round_))
    return layout


def pixels(layout):
    index = PoolIndex(layout, layout.pool_rounds())
    return [(i.category_id, decode_rgba(index.read(row), "").tobytes()) for row, i in enumerate(index)]


def change(layout, round_, row, **values):
    rows = list(PoolIndex(layout, [round_], dropped_too=True))
    rows[row] = dataclasses.replace(rows[row], **values)
    write_index(layout, round_, rows)


def test_a_good_pool_has_no_problem(layout):
    assert list(verify(layout, IDS)) == []


def lose(layout):
    os.remove(layout.pool("cutouts/00_0007_0001.webp"))


def cut_off(layout):
    path = layout.pool("cutouts/00_0007_0001.webp")
    files.write_bytes(path, files.read_bytes(path)[:-20])


def lose_the_marker(layout):
    os.remove(layout.annotations_done(1))


def lose_the_index(layout):
    os.remove(layout.pool_index(1))


def halve_the_annotations(layout):
    path = layout.annotations(1)
    files.write_bytes(path, files.read_bytes(path)[:300])


def forget_an_annotation(layout):
    content = files.read_json(layout.annotations(0))
    content["images"].pop()
    content["annotations"].pop()
    files.write_json(layout.annotations(0), content)


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (lose, "00_0007_0001.png", "there is no file"),
        (cut_off, "00_0007_0001.webp", "does not decode"),
        (lambda run: change(run, 0, 1, bbox=[0, 0, 30, 30]), "00_0007_0001.webp", "box"),
        (lambda run: change(run, 0, 1, area=3), "00_0007_0001.webp", "area 3"),
        (lambda run: change(run, 0, 1, category_id=8), "00_0007_0001.png", "category 8"),
        (lambda run: change(run, 0, 1, cutout="../../x"), "rd00.arrow", "leads out of"),
        (lose_the_marker, "rd01.arrow", "no marker"),
        (lose_the_index, "rd01.arrow", "there is no pool index"),
        (halve_the_annotations, "rd01.json", "not valid JSON"),
        (forget_an_annotation, "rd00.json", "lacks 1 instances"),
    ],
)
def test_each_damage_is_found_and_has_a_remedy(layout, damage, file, what):
    damage(layout)
    (problem,) = verify(layout, IDS)
    assert problem.file.endswith(file) and what in problem.what and problem.remedy


def test_a_duplicate_is_found_and_goes_by_prune(layout):
    data = files.read_bytes(layout.pool("cutouts/00_0003_0000.webp"))
    files.write_bytes(layout.pool("cutouts/01_0003_0000.webp"), data)
    first = PoolIndex(layout, [0])[0]
    change(layout, 1, 0, bbox=first.bbox, area=first.area)
    (problem,) = verify(layout, IDS)
    assert "the same picture as" in problem.what and "--duplicates" in problem.remedy
    assert prune_duplicates(layout, CATEGORIES) == 1
    assert list(verify(layout, IDS)) == []
    assert len(read_annotations(layout.annotations(1)).images) == len(PoolIndex(layout, [0, 1])) == 5


def test_pruning_leaves_what_training_reads(layout):
    before = pixels(layout)
    assert prune_originals(layout, 0) == 8 and prune_dropped(layout, 0) == 1
    assert not files.list_dir(layout.raw(""))[0].startswith("00_")
    assert pixels(layout) == before and list(verify(layout, IDS)) == []


def test_a_packed_pool_reads_the_same(layout):
    before = pixels(layout)
    assert pack(layout, 0) == 4
    assert files.list_dir(layout.pool("cutouts"))[0] == "01_0003_0000.webp"
    assert pixels(layout) == before and list(verify(layout, IDS)) == []
    assert pack(layout, 0) == 0 and pixels(layout) == before


def test_merged_pools_keep_every_instance(layout, tmp_path):
    out = RunLayout(str(tmp_path / "out"))
    assert merge(out, layout, CATEGORIES) == 6 and merge(out, layout, CATEGORIES) == 6
    assert pixels(out) == pixels(layout) * 2
    assert set(PoolIndex(out, out.pool_rounds()).rounds) == {0, 1, 2, 3}
    assert all("the same picture" in problem.what for problem in verify(out, IDS))


def test_an_exported_pool_comes_back_the_same(layout, tmp_path):
    folders, coco, back = (str(tmp_path / name) for name in ("folders", "coco", "back"))
    export_folders(layout, NAMES, folders)
    export_coco(layout, CATEGORIES, coco)
    assert len(read_annotations(f"{coco}/annotations.json").annotations) == 6
    annotations = f"{coco}/annotations.json"
    sources = {"folders": f"{folders}/images", "xpaste": f"{folders}/LVIS_instance_pools.json"}
    for kind, source in sources.items():
        run([back + kind, source, "--from", kind, "--annotations", annotations], "import")
        assert sorted(pixels(RunLayout(back + kind))) == sorted(pixels(layout))


def run(arguments, name):
    saved, sys.argv = sys.argv, ["pool.py", name, *arguments]
    try:
        command.main()
    finally:
        sys.argv = saved


def test_the_command_verifies_counts_and_packs(layout, capsys):
    run([layout.root], "verify")
    run([layout.root, "--per-class"], "stats")
    run([layout.root], "pack")
    printed = capsys.readouterr().out
    assert "nothing is wrong" in printed and "red disc" in printed and "packed 4 cut-outs" in printed
    os.remove(layout.annotations_done(0))
    with pytest.raises(UserError, match="1 problems"):
        run([layout.root], "verify")


def test_a_folder_without_a_pool_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no pool"):
        run([str(tmp_path)], "stats")
