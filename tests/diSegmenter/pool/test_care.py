"""Verify, prune, pack, export and import, on a pool of two rounds: single files, packed, or half of each."""

import dataclasses
import os
import re
import tarfile
from collections import Counter
from unittest.mock import Mock, patch

import numpy as np
import pytest

from diSegmenter.pool import annotation_file, prune
from diSegmenter.pool.foreign import read_folders
from diSegmenter.pool.move import export_annotations, export_coco, export_folders, pack
from diSegmenter.pool.prune import prune_dropped, prune_duplicates, prune_originals
from diSegmenter.pool.verify import verify
from exchange import files
from exchange.annotations import read_annotations
from exchange.cutouts import encode_cutout
from exchange.errors import UserError
from exchange.images import decode_rgba
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, write_index
from tests.diSegmenter.conftest import CATEGORIES
from tests.diSegmenter.pool.two_rounds import IDS, NAMES, change, layout, pixels, pool
from tools import pool as command

__all__ = ["layout", "pool"]


def test_a_good_pool_has_no_problem_be_its_edges_ever_so_soft(layout):
    index = PoolIndex(layout, [0])
    soft = decode_rgba(index.read(1), "")[..., 3] // 3
    image, box = np.zeros((*soft.shape, 3), np.uint8), [0, 0, *soft.shape[::-1]]
    files.write_bytes(index.name(1), encode_cutout(image, soft, box))
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


def append(layout):
    path = PoolIndex(layout, [0]).name(1)
    files.write_bytes(path, files.read_bytes(path) + b"more")


def loosen(layout, side):
    """A cut-out with an empty row above or below, or column on the left or right; the index says so."""
    index, (above, below, left, right) = PoolIndex(layout, [0]), np.eye(4, dtype=int)[side].tolist()
    padded = np.pad(decode_rgba(index.read(1), ""), ((above, below), (left, right), (0, 0)))
    box = [*index[1].bbox[:2], padded.shape[1], padded.shape[0]]
    files.write_bytes(index.name(1), encode_cutout(padded, padded[..., 3], [0, 0, *box[2:]]))
    change(layout, 0, 1, bbox=box)


def turn(layout):
    x, y, width, height = PoolIndex(layout, [0])[1].bbox
    assert width != height
    change(layout, 0, 1, bbox=[x, y, height, width])


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (lose, "00_0007_0001.png", "there is no file"),
        (cut_off, "00_0007_0001.webp", "does not decode"),
        (lambda run: change(run, 0, 1, bbox=[0, 0, 30, 30]), "00_0007_0001.webp", "box"),
        (lambda run: change(run, 0, 1, width=20), "rd00.arrow", "box"),
        (lambda run: change(run, 0, 1, height=20), "rd00.arrow", "box"),
        *((lambda run, side=side: loosen(run, side), "00_0007_0001.webp", "box") for side in range(4)),
        (turn, "00_0007_0001.webp", "box"),
        (append, "00_0007_0001.webp", "not its halves"),
        (lambda run: change(run, 0, 1, area=3), "00_0007_0001.webp", "area 3"),
        (lambda run: change(run, 0, 1, category_id=5), "00_0007_0001.png", "category 5"),
        (lambda run: change(run, 0, 1, cutout="../../x"), "rd00.arrow", "leads out of"),
        (lose_the_marker, "rd01.arrow", "no marker"),
        (lose_the_index, "rd01.arrow", "there is no pool index"),
        (lambda run: files.write_done(run.annotations_done(100)), "rd100.arrow", "there is no pool index"),
        (halve_the_annotations, "rd01.json", "not valid JSON"),
        (forget_an_annotation, "rd00.json", "lacks 1 instances of the index, such as 00_0003_0002.png"),
        (lambda run: change(run, 1, 0, reason="by hand"), "rd01.json", "lists dropped 1 instances"),
    ],
)
def test_each_damage_is_found_and_has_a_remedy(layout, damage, file, what):
    damage(layout)
    (problem,) = verify(layout, IDS)
    assert problem.file.endswith(file) and what in problem.what and problem.remedy
    if of_round := re.match(r"rd(\d+).arrow", file):
        assert problem.remedy == f"run mrca segment --st-rd {int(of_round[1])} again"
    if file.endswith(".json"):
        assert problem.remedy.startswith("remove it: training reads the index")


def test_all_that_is_wrong_with_one_cutout_is_told(layout):
    append(layout)
    change(layout, 0, 1, category_id=5, area=3)
    told = [problem.what for problem in verify(layout, IDS)]
    assert [word in what for word, what in zip(("category", "area", "halves"), told, strict=True)] == [
        True
    ] * 3


def test_every_instance_of_a_large_pool_is_looked_at(layout):
    rows = [next(iter(PoolIndex(layout, [0])))] * 609  # the last one is by itself
    for area, row in enumerate((255, 256, 511, 608), start=1):
        rows[row] = dataclasses.replace(rows[row], area=area)
    rows[600] = PoolIndex(layout, [0])[1]  # another one, of another size, with which nothing is wrong
    write_index(layout, 0, rows)
    found = [problem.what for problem in verify(layout, IDS) if problem.file.endswith(".webp")]
    assert [int(re.search(r"area (\d+)", what)[1]) for what in found] == [1, 2, 3, 4]


def double(layout):
    data = files.read_bytes(layout.pool("cutouts/00_0003_0000.webp"))
    files.write_bytes(layout.pool("cutouts/00_0003_0002.webp"), data)
    first = PoolIndex(layout, [0])[0]
    change(layout, 0, 2, bbox=first.bbox, area=first.area)


def test_the_rounds_behind_one_that_has_lost_its_index_are_verified_too(layout):
    os.remove(layout.pool_index(0))
    lose_the_marker(layout)
    assert len(list(verify(layout, IDS))) == 2


def test_a_duplicate_is_found_and_goes_by_prune(layout, call, capsys):
    double(layout)
    (problem,) = verify(layout, IDS)
    assert "the same picture as" in problem.what and "--duplicates" in problem.remedy
    change(layout, 0, 0, reason="by hand")
    assert prune_duplicates(layout, CATEGORIES) == 0  # of what is kept
    assert not any("picture" in problem.what for problem in verify(layout, IDS))
    change(layout, 0, 0, reason="")
    call(command, "prune", layout.root, "--dropped", "--duplicates")
    told = [f"round {round_}: removed {count} cut-outs" for round_, count in ((0, 2), (1, 1))]
    assert capsys.readouterr().out.splitlines() == ["dropped 1 duplicates", *told]
    assert list(verify(layout, IDS)) == []
    listed = [len(read_annotations(layout.annotations(round_)).image_ids) for round_ in (0, 1)]
    assert listed == [2, 5] and len(PoolIndex(layout, [0, 1])) == 5


def test_a_prune_that_was_killed_is_made_good_by_the_next(layout):
    double(layout)
    with patch.object(prune, "renew_lvis", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        prune_duplicates(layout, CATEGORIES)
    assert [problem.file for problem in verify(layout, IDS)] == [layout.annotations(0)]
    assert prune_duplicates(layout, CATEGORIES) == 0 and list(verify(layout, IDS)) == []
    assert len(read_annotations(layout.annotations(1)).image_ids) == 5


def test_pruning_leaves_every_cut_out_that_is_kept_and_can_be_packed_then(pool):
    before = pixels(pool)
    loose = [name for name in files.list_dir(pool.pool("cutouts")) if name.endswith("_0003.webp")]
    for round_ in (0, 1):
        assert prune_originals(pool, round_) == 8
        assert prune_dropped(pool, round_) == sum(name.startswith(f"{round_:02}") for name in loose)
    assert not files.list_dir(pool.raw("")) and not files.list_dir(pool.segmented(""))
    for _ in range(2):
        assert pixels(pool) == before and list(verify(pool, IDS)) == []
        assert prune_duplicates(pool, CATEGORIES) == 0
        for round_ in (0, 1):
            pack(pool, round_)


def test_removing_many_files_says_how_far_it_is(layout, monkeypatch):
    told = Mock(side_effect=lambda paths, *labels, **settings: paths)
    monkeypatch.setattr(prune, "tqdm", told)
    assert (prune_originals(layout, 0), prune_dropped(layout, 0)) == (8, 1)
    assert [len(call.args[0]) for call in told.call_args_list] == [8, 1]


def test_packing_keeps_every_cut_out_kept_or_dropped_in_tar_files_that_anybody_reads(pool):
    before = pixels(pool, dropped_too=True)
    packed = sum(name.endswith(".tar") for name in files.list_dir(pool.pool("cutouts"))) // 2
    assert [pack(pool, round_) for round_ in (0, 1)] == [4 * (packed < 1), 4 * (packed < 2)]
    assert pack(pool, 0) == 0
    tars = [f"rd{round_:02}_{number:04}.tar" for round_ in (0, 1) for number in (0, 1)]
    assert files.list_dir(pool.pool("cutouts")) == tars
    assert pixels(pool, dropped_too=True) == before and list(verify(pool, IDS)) == []
    assert files.read_bytes(pool.pool(f"cutouts/{tars[2]}")).endswith(bytes(2 * 512))  # where a tar file ends
    with tarfile.open(pool.pool(f"cutouts/{tars[2]}")) as tar:
        members = [(tar.extractfile(name).read(), name) for name in tar.getnames()]
    assert [decode_rgba(*member).tobytes() for member in members] == [data for *_, data in before[4:7]]


def test_a_cut_out_that_comes_back_is_packed_beside_the_tar_files_there_are(pool):
    for round_ in (0, 1):
        pack(pool, round_)
    before, data = pixels(pool), PoolIndex(pool, [0]).read(0)
    files.write_bytes(pool.pool("cutouts/back.webp"), data)
    change(pool, 0, 0, cutout="cutouts/back.webp", offset=0, length=-1)
    assert pack(pool, 0) == 1 and pixels(pool) == before


def test_packing_that_is_killed_before_its_index_is_written_loses_nothing(layout, monkeypatch):
    before = pixels(layout, dropped_too=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PoolIndex, "write_as", Mock(side_effect=KeyboardInterrupt))
        pack(layout, 0)
    assert pixels(layout, dropped_too=True) == before
    assert pack(layout, 0) == 4 and pixels(layout, dropped_too=True) == before
    files.remove(layout.cutout("01_0003_0000.png"))
    with pytest.raises(UserError, match=r"there is no file .*01_0003_0000\.webp"):
        pack(layout, 1)


def test_packing_that_is_killed_amid_the_single_files_is_made_good_by_the_same_call(layout, monkeypatch):
    before, remove = pixels(layout, dropped_too=True), Mock(side_effect=[None, KeyboardInterrupt])
    files.write_bytes(stray := layout.pool("cutouts/00_mine.webp"), b"of no index")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "remove", remove)
        pack(layout, 0)
    assert [pack(layout, round_) for round_ in (0, 1)] == [0, 4]
    left = [stray.rpartition("/")[2], "rd00_0000.tar", "rd01_0000.tar"]
    assert files.list_dir(layout.pool("cutouts")) == left
    assert pixels(layout, dropped_too=True) == before


def test_an_exported_pool_comes_back_the_same(pool, tmp_path, call):
    folders, coco = (str(tmp_path / name) for name in ("folders", "coco"))
    backwards = dict(sorted(NAMES.items(), reverse=True))
    export_folders(pool, backwards, folders)
    export_coco(pool, CATEGORIES, coco)
    annotations = f"{coco}/annotations.json"
    assert read_annotations(annotations).file_names() == [i.file for i in PoolIndex(pool, [0, 1])]
    listed = files.read_json(f"{folders}/LVIS_instance_pools.json")
    assert {key: len(paths) for key, paths in listed.items()} == {"0": 4, "1": 2}
    assert all(path.startswith("*") for paths in listed.values() for path in paths)  # not to be cleaned again
    beside = f"{coco}/images/annotations.json"  # its pictures, whose folder is not given then
    files.write_bytes(beside, files.read_bytes(annotations))
    for kind, source, *root in (
        ("folders", f"{folders}/images"),
        ("xpaste", f"{folders}/LVIS_instance_pools.json"),
        ("coco", annotations, "--root", f"{coco}/images"),
        ("coco", beside),
    ):
        back = str(tmp_path / f"from {kind} {len(root)}")
        call(command, "import", back, source, "--from", kind, "--annotations", annotations, *root)
        assert sorted(pixels(RunLayout(back))) == sorted(pixels(pool))
        assert list(verify(RunLayout(back), IDS)) == []


def test_an_annotation_file_says_how_far_it_is(layout, tmp_path, monkeypatch):
    told = Mock(side_effect=lambda instances, *labels, **settings: instances)
    monkeypatch.setattr(annotation_file, "tqdm", told)
    export_annotations(layout, CATEGORIES, str(tmp_path))
    assert told.call_args.args[1:] == ("annotations", 6)
    assert len(read_annotations(str(tmp_path / "annotations.json")).object_images) == 6


def test_classes_whose_names_no_folder_can_have_are_exported_apart(pool, tmp_path):
    first, second = NAMES
    names = {first: "a/b\\c", second: "a%2Fb%5Cc"}
    export_folders(pool, names, str(tmp_path))
    back = read_folders(str(tmp_path / "images"), {name: key for key, name in names.items()})
    assert Counter(found.category_id for found in back) == Counter(
        PoolIndex(pool, [0, 1]).category_ids.tolist()
    )


def test_the_command_verifies_merges_counts_and_packs(layout, capsys, call):
    call(command, "verify", layout.root)
    call(command, "merge", f"{layout.root}2", f"{layout.root}/")
    merged = RunLayout(f"{layout.root}2")
    assert read_annotations(merged.pool_categories()).categories == CATEGORIES
    assert pixels(merged) == pixels(layout)
    call(command, "stats", layout.root, "--per-class")
    call(command, "prune", layout.root, "--originals")
    call(command, "prune", layout.root, "--dropped")
    call(command, "pack", layout.root)
    printed = capsys.readouterr().out
    assert "nothing is wrong" in printed and "red disc" in printed
    pruned = [f"round {r}: removed {what}" for what in ("8 images and masks", "1 cut-outs") for r in (0, 1)]
    assert printed.splitlines()[-6:] == [*pruned, *(f"round {r}: packed 3 cut-outs" for r in (0, 1))]
    content = {"images": [], "annotations": [], "categories": [{"id": 99, "name": "other disc"}]}
    files.write_json(others := f"{layout.root}/others.json", content)
    with pytest.raises(UserError, match="6 problems"):  # instances of no category
        call(command, "verify", layout.root, "--annotations", others)
    call(command, "stats", layout.root, "--per-class", "--annotations", others)
    assert "other disc" in capsys.readouterr().out
    os.remove(layout.annotations_done(0))
    with pytest.raises(UserError, match="1 problems"):
        call(command, "verify", layout.root)


def test_a_folder_without_a_pool_is_named(tmp_path, call):
    with pytest.raises(UserError, match="holds no pool"):
        call(command, "stats", str(tmp_path))
