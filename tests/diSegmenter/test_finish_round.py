import os

import numpy as np
import pytest

from diSegmenter.checks import Checks
from diSegmenter.finish_round import finish_round, is_finished
from diSegmenter.images import encode_cutout, write_alpha
from exchange import files
from exchange.annotations import read_annotations
from exchange.cutouts import Cutout, read_verdicts, write_cutouts
from exchange.errors import UserError
from exchange.pool_index import PoolIndex
from tests.diSegmenter.conftest import CATEGORIES, disc_image, generate

CHECKS = Checks(clip_threshold=25.0, area_share=(0.0, 1.0), max_objects=0, drop_touching_border=False)


def cut_out(layout, instances, scores, shard=0, num_shards=1, unreadable=()):
    """Writes the record that stage 2 would write for these instances."""
    cutouts = [
        Cutout(i.file, i.category_id, 48, 40, [3, 4, 10, 11], 90, [[3, 4, 12, 4, 12, 14]], 1, 0.0, score)
        for i, score in zip(instances, scores, strict=True)
    ]
    for cutout in cutouts:
        alpha = np.full((40, 48), 200, np.uint8)
        write_alpha(layout.segmented(cutout.file), alpha)
        files.write_bytes(layout.cutout_image(cutout.file), encode_cutout(disc_image(9), alpha, cutout.bbox))
    round_ = int(instances[0].file[:2])
    write_cutouts(layout.cutouts(round_, shard, num_shards), cutouts, list(unreadable))


def test_the_pool_is_cumulative_in_lvis_format(layout):
    for round_, scores in ((0, [30, 20, 30, 25]), (1, [10, 40, 24.9, 10])):
        cut_out(layout, generate(layout, round_, 4), scores)
        assert finish_round(layout, round_, CHECKS, CATEGORIES, range(round_ + 1))
    first, second = (read_annotations(layout.annotations(round_)) for round_ in (0, 1))
    assert [image["file_name"] for image in first.images] == [
        "00_0003_0000.png",
        "00_0003_0002.png",
        "00_0007_0003.png",
    ]
    assert [image["file_name"] for image in second.images][3:] == ["01_0007_0001.png"]
    assert [a["round"] for a in second.annotations] == [0, 0, 0, 1]
    assert second.categories == CATEGORIES
    annotation = second.annotations[3]
    assert (annotation["id"], annotation["image_id"], annotation["category_id"]) == (4, 4, 7)
    assert (annotation["bbox"], annotation["area"], annotation["iscrowd"]) == ([3, 4, 10, 11], 90, 0)
    assert files.exists(layout.annotations_done(1)) and is_finished(layout, 1)


def test_the_latest_round_alone_is_an_option(layout):
    for round_ in (0, 1):
        cut_out(layout, generate(layout, round_, 2), [30, 30])
        finish_round(layout, round_, CHECKS, CATEGORIES, [round_])
    assert {a["round"] for a in read_annotations(layout.annotations(1)).annotations} == {1}


def test_the_index_knows_all_that_the_annotations_and_the_manifest_know(layout):
    instances = generate(layout, 0, 4)
    cut_out(layout, instances, [30, 20, 30, 25])
    finish_round(layout, 0, CHECKS, CATEGORIES, [0], annotation_file=False)
    assert not files.exists(layout.annotations(0)) and files.exists(layout.annotations_done(0))
    index = PoolIndex(layout, [0])
    assert index.category_ids.tolist() == [3, 3, 7] and index.rounds.tolist() == [0, 0, 0]
    row = index[2]
    made = instances[3]
    assert (row.file, row.seed, row.prompt, row.model) == (made.file, made.seed, made.prompt, "tiny")
    assert (row.bbox, row.area, row.clip_black, row.width, row.height) == ([3, 4, 10, 11], 90, 25.0, 48, 40)
    assert index.read(2) == files.read_bytes(layout.cutout_image(made.file))


def test_a_round_that_lost_a_cut_out_is_not_finished(layout):
    instances = generate(layout, 0, 2)
    cut_out(layout, instances, [30, 30])
    finish_round(layout, 0, CHECKS, CATEGORIES, [0])
    assert is_finished(layout, 0)
    os.remove(layout.cutout_image(instances[1].file))
    assert not is_finished(layout, 0)


def test_reasons_and_thresholds_are_on_record(layout):
    cut_out(layout, generate(layout, 0, 2), [30, 20])
    finish_round(layout, 0, CHECKS, CATEGORIES, [0])
    verdicts = read_verdicts(layout, 0)
    assert verdicts.reasons == {"00_0003_0000.png": "", "00_0007_0001.png": "CLIP score"}
    assert verdicts.settings["clip_threshold"] == 25.0


def test_a_round_waits_for_the_other_shards_of_stage_2(layout):
    instances = generate(layout, 0, 4)
    cut_out(layout, instances[:2], [30, 30], 0, 2)
    assert not finish_round(layout, 0, CHECKS, CATEGORIES, [0])
    assert not files.exists(layout.annotations(0)) and not is_finished(layout, 0)
    cut_out(layout, instances[2:], [30, 30], 1, 2)
    assert finish_round(layout, 0, CHECKS, CATEGORIES, [0])
    assert len(read_annotations(layout.annotations(0)).images) == 4


def test_a_few_images_that_do_not_decode_are_left_out(layout):
    instances = generate(layout, 0, 40)
    cut_out(layout, instances[:38], [30] * 38, unreadable=[i.file for i in instances[38:]])
    assert finish_round(layout, 0, CHECKS, CATEGORIES, [0])
    assert read_verdicts(layout, 0).unreadable == sorted(i.file for i in instances[38:])


def test_more_than_five_percent_of_damaged_images_is_an_error(layout):
    instances = generate(layout, 0, 40)
    cut_out(layout, instances[:37], [30] * 37, unreadable=[i.file for i in instances[37:]])
    with pytest.raises(UserError, match=f"3 images .* do not decode .*{instances[38].file}"):
        finish_round(layout, 0, CHECKS, CATEGORIES, [0])
    assert not files.exists(layout.annotations_done(0))


def test_a_pool_on_an_unfinished_round_is_refused(layout):
    cut_out(layout, generate(layout, 1, 2), [30, 30])
    with pytest.raises(UserError, match="--st_rd 0"):
        finish_round(layout, 1, CHECKS, CATEGORIES, [0, 1])
