import dataclasses
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from diSegmenter import finish_round
from diSegmenter.filter import InstanceFilter
from diSegmenter.finish_round import (
    JudgedRound,
    finished_rounds,
    judge_again,
    judge_round,
    read_filter,
    write_pool,
)
from exchange import files
from exchange.cutouts import encode_cutout
from exchange.errors import UserError
from exchange.pool_index import PoolIndex
from tests.diSegmenter.conftest import CATEGORIES, disc_image, generate, pool_instance

CHECKS = InstanceFilter(clip_threshold=25.0, area_share=(0.0, 1.0), max_objects=0, drop_touching_border=False)


def cut_out(layout, generated, scores):
    """What stage 2 makes of generated images, with these CLIP scores."""
    instances = []
    for item, score in zip(generated, scores, strict=True):
        round_ = int(item.file[:2])
        instance = pool_instance(round_, item.category_id, item.instance, clip_black=score)
        cutout = encode_cutout(disc_image(9), np.full((40, 48), 200, np.uint8), instance.bbox)
        files.write_bytes(layout.cutout(item.file), cutout)
        instances.append(instance)
    return instances


def finish(layout, round_, scores, pool_rounds, limit=100):
    instances = cut_out(layout, generate(layout, round_, len(scores)), scores)
    judged = judge_round(layout, round_, instances, CHECKS)
    write_pool(layout, judged, CATEGORIES, pool_rounds, limit)


def test_the_pool_is_cumulative_in_lvis_format(layout):
    finish(layout, 0, [30, 20, 30, 25], [0])
    finish(layout, 1, [10, 40, 24.9, 10], [0, 1])
    first, second = (files.read_json(layout.annotations(round_)) for round_ in (0, 1))
    names = [f"00_{rest}.png" for rest in ("0003_0000", "0003_0002", "0007_0003")]
    assert [image["file_name"] for image in first["images"]] == names
    assert len(second["images"]) == 4
    assert [a["round"] for a in second["annotations"]] == [0, 0, 0, 1]
    assert second["categories"] == CATEGORIES and second["info"]["rounds"] == [0, 1]
    placed = {"id": 4, "image_id": 4, "category_id": 7, "iscrowd": 0, "round": 1, "clip_score": 40}
    outline = {"bbox": [3, 4, 10, 11], "area": 90, "segmentation": [[3, 4, 12, 4, 12, 14]]}
    assert second["annotations"][3] == placed | outline
    image = {"id": 4, "file_name": "01_0007_0001.png", "width": 48, "height": 40}
    assert second["images"][3] == image | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    assert finished_rounds(layout, range(3)) == [0, 1]


def test_a_round_costs_the_same_whatever_came_before_and_says_who_writes_the_rest(
    layout, monkeypatch, caplog
):
    caplog.set_level("INFO")
    for round_ in range(5):
        finish(layout, round_, [30, 30], list(range(round_ + 1)), limit=4)
    assert [files.exists(layout.annotations(round_)) for round_ in range(5)] == [True] * 2 + [False] * 3
    assert "round 3: kept 2 of 2 instances" in caplog.messages
    assert "ANNOTATION_FILE_LIMIT" in caplog.text and f"mrca pool export {layout.root} OUT" in caplog.text
    opened, written, write = [], Counter(), files.atomic_writer

    class Opened(PoolIndex):
        def __init__(self, layout, rounds, *more):
            opened.extend(rounds)
            super().__init__(layout, rounds, *more)

    @contextmanager
    def counted(path, *more):
        with write(path, *more) as file:
            yield file
            written["bytes"] += file.tell()

    monkeypatch.setattr(finish_round, "PoolIndex", Opened)
    generated = {round_: cut_out(layout, generate(layout, round_, 2), [30, 30]) for round_ in (6, 7)}
    monkeypatch.setattr(files, "atomic_writer", counted)
    sizes = []
    for round_, earlier in ((6, [3, 4]), (7, [0, 1, 2, 3, 4])):
        opened.clear(), written.clear()
        judged = judge_round(layout, round_, generated[round_], CHECKS)
        write_pool(layout, judged, CATEGORIES, [*earlier, round_], 4)
        assert sorted(set(opened)) == [3, 4, round_]
        sizes.append(written["bytes"])
    assert sizes[0] == sizes[1]


def test_a_pool_that_a_second_judgement_makes_too_large_leaves_no_stale_annotation_file(layout):
    finish(layout, 0, [30, 20, 20], [0], limit=2)
    assert files.exists(layout.annotations(0))
    write_pool(
        layout, judge_again(layout, 0, dataclasses.replace(CHECKS, clip_threshold=10.0)), CATEGORIES, [0], 2
    )
    assert files.exists(layout.annotations_done(0)) and not files.exists(layout.annotations(0))


def test_masks_and_cut_outs_are_flushed_before_an_index_or_a_marker_tells_of_them(layout, monkeypatch):
    told = []
    marks = (layout.pool_index(0), layout.annotations_done(0))
    monkeypatch.setattr(files, "flush_all", lambda: told.append(any(map(files.exists, marks))))
    finish(layout, 0, [30], [0])
    assert told == [False] and all(map(files.exists, marks))


def test_the_index_lists_dropped_ones_with_their_reason(layout):
    finish(layout, 0, [30, 20, 30, 25], [0])
    assert PoolIndex(layout, [0]).category_ids.tolist() == [3, 3, 7]
    everything = PoolIndex(layout, [0], dropped_too=True)
    assert everything.column("reason").tolist() == ["", "", "CLIP score", ""]  # in the order of names
    assert everything[2] == pool_instance(0, 7, 1, clip_black=20.0, reason="CLIP score")


def test_what_has_no_reason_against_it_is_kept_of_however_many_parts_it_is():
    several, dropped = pool_instance(0, 3, 0, objects=3), pool_instance(0, 3, 1, reason="too small")
    assert JudgedRound(0, CHECKS, [several, dropped], unreadable=[]).kept == [several]


def test_decisions_and_thresholds_are_on_record(layout):
    finish(layout, 1, [30, 20], [1])
    of_both = {"clip_white": 0.0, "similarity": None, "judge": None, "objects": 1, "area": 90}
    kept = {"kept": True, "file": "01_0003_0000.png", "category_id": 3, "reason": "", "clip_black": 30}
    dropped = {"kept": False, "file": "01_0007_0001.png", "category_id": 7, "reason": "CLIP score"}
    assert files.read_json(layout.verdicts(1)) == {
        "format": 1,
        "round": 1,
        "settings": dataclasses.asdict(CHECKS) | {"area_share": [0.0, 1.0]},
        "unreadable": [],
        "instances": [kept | of_both, dropped | of_both | {"clip_black": 20}],
    }
    for damaged in ([], {}, {"settings": 3}):
        files.write_json(layout.verdicts(1), damaged)
        with pytest.raises(UserError, match=r"rd01\.filter\.json does not say what was kept .*--refilter"):
            read_filter(layout, 1)


def test_a_round_is_judged_again_from_its_index(layout):
    finish(layout, 0, [30, 20, 22, 40], [0])
    again = judge_again(layout, 0, InstanceFilter(21.0, (0.0, 1.0), 0, False))
    assert [i.file for i in again.kept] == ["00_0003_0000.png", "00_0003_0002.png", "00_0007_0003.png"]


@pytest.mark.parametrize(
    ("tolerance", "kept", "emptied"),
    [(0.0, [30.0], ["blue_disc"]), (1.0, [30.0, 24.0, 23.5], []), (9.0, [30.0, 22.0, 24.0, 23.5, 20.0], [])],
)
def test_a_threshold_with_tolerance_empties_no_class_and_a_fixed_one_names_those_that_it_does(
    layout, caplog, tolerance, kept, emptied
):
    instances = cut_out(layout, generate(layout, 0, 6), [30, 24, 22, 23.5, 9, 20])
    instances.append(
        dataclasses.replace(instances[1], file="00_0007_0009.png", segmentation=[], clip_black=99.0)
    )
    checks = dataclasses.replace(CHECKS, clip_tolerance=tolerance)
    judged = JudgedRound(0, checks, checks.judge(instances), [])
    write_pool(layout, judged, [*CATEGORIES, {"id": 9, "name": "moth"}], [0], 100)  # no moth was made
    assert [i.clip_score for i in sorted(judged.kept, key=lambda i: i.category_id)] == kept
    assert judged.instances[-1].reason == "no object"  # and is not the best of its class
    assert [name for name in ("red disc", "blue_disc", "moth") if name in caplog.text] == emptied
    assert not emptied or "(blue_disc); dropped for CLIP score 3, no object 1: " in caplog.text


def test_images_that_nobody_has_cut_out_are_left_to_other_processes(layout):
    instances = cut_out(layout, generate(layout, 0, 4), [30] * 4)
    assert judge_round(layout, 0, instances[:3], CHECKS) is None
    assert len(judge_round(layout, 0, instances, CHECKS).instances) == 4


def test_a_few_images_that_do_not_decode_are_left_out(layout, caplog):
    generated = generate(layout, 0, 40)
    for item in generated[38:]:
        files.write_bytes(layout.raw(item.file), b"no image")
    judged = judge_round(layout, 0, cut_out(layout, generated[:38], [30] * 38), CHECKS)
    assert judged.unreadable == sorted(item.file for item in generated[38:])
    names = ", ".join(judged.unreadable)
    assert "WARNING  diSegmenter.finish_round:" in caplog.text
    assert caplog.messages == [f"round 0: 2 images do not decode and are left out: {names}"]
    assert len(judged.kept) == 38
    write_pool(layout, judged, CATEGORIES, [0], 100)
    assert judge_again(layout, 0, CHECKS).unreadable == judged.unreadable


@pytest.mark.parametrize(("number", "share", "more"), [(3, 8, ""), (10, 25, ""), (11, 28, ", …")])
def test_more_than_five_percent_of_damaged_images_is_an_error(layout, number, share, more):
    generated = generate(layout, 0, 40)
    whole, damaged = generated[number:], generated[:number]
    for item in damaged:
        files.write_bytes(layout.raw(item.file), b"no image")
    names = ", ".join(sorted(item.file for item in damaged)[:10]) + more
    with pytest.raises(
        UserError, match=rf"^{number} images \({share}%\) of round 0 do not decode \({names}\)"
    ):
        judge_round(layout, 0, cut_out(layout, whole, [30] * len(whole)), CHECKS)


def test_a_pool_on_an_unfinished_round_is_refused(layout):
    with pytest.raises(UserError, match="--st-rd 0"):
        finish(layout, 1, [30, 30], [0, 1])
    assert not files.exists(layout.annotations_done(1))


def test_a_start_lists_each_folder_of_cut_outs_once_for_all_rounds(layout, monkeypatch, caplog):
    for round_ in range(5):
        finish(layout, round_, [30, 30], [round_])
    files.write_bytes(layout.pool_outlines(4), b"damaged")
    files.remove(layout.cutout("02_0003_0000.png"))
    listed, list_dir = [], files.list_dir
    monkeypatch.setattr(files, "list_dir", lambda folder: listed.append(folder) or list_dir(folder))
    assert finished_rounds(layout, range(6)) == [0, 1, 3]
    assert listed == [layout.pool("cutouts")]
    (told,) = caplog.messages
    assert told.startswith("round 4 has its marker but no good index, which is made again: ")


def test_classes_that_lose_all_are_named_with_what_they_are_dropped_for(layout, caplog):
    finish(layout, 0, [30, 20, 30, 25], [0])
    assert "nothing is kept" not in caplog.text
    names = {category["id"]: category["name"] for category in CATEGORIES}
    instances = cut_out(layout, generate(layout, 1, 4), [40, 20, 20, 10])  # of 3, 7, 3, 7
    refused = [dataclasses.replace(instance, judge=0.5 * (n > 0)) for n, instance in enumerate(instances)]
    judge = dataclasses.replace(CHECKS, judge_threshold=0.5)
    write_pool(layout, judge_round(layout, 1, refused, judge), CATEGORIES, [0, 1], 100)
    assert (
        f"nothing is kept of 2 classes ({names[3]}, {names[7]}); dropped for CLIP score 3, judge 1: "
        in caplog.text
    )


def test_of_many_classes_that_lose_all_the_first_are_named(caplog):
    instances = [pool_instance(0, category_id, 0, reason="CLIP score") for category_id in range(1, 1204)]
    categories = [{"id": category_id, "name": f"class {category_id}"} for category_id in range(1, 1204)]
    finish_round._warn_of_emptied(JudgedRound(0, CHECKS, instances, []), categories)
    (told,) = caplog.messages
    assert "nothing is kept of 1203 classes (class 1, class 2, " in told
    assert ", class 10, …); dropped for CLIP score 1203: " in told and "class 11" not in told
