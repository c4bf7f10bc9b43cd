import itertools
import os
import zlib
from pathlib import Path
from unittest.mock import MagicMock, call

import numpy as np
import pytest

from diSegmenter import segment_round
from diSegmenter.annotate import MaskCleaner
from diSegmenter.cut_out import InTurn, OneModel
from diSegmenter.segment_round import RoundSegmenter, follow_round, read_cut_out
from exchange import files
from exchange.images import read_rgba
from exchange.layout import RunLayout
from exchange.shards import Shard
from tests.diSegmenter.conftest import generate

WHOLE = Shard()


class Darkness:
    """A foreground model without a network, never quite sure; counts what it sees."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return [np.where(image[..., 1] < 255, 200, 3).astype(np.uint8) for image in images]


def score(images, alphas, category_ids):
    return np.array(
        [[category / 7, alpha.mean()] for alpha, category in zip(alphas, category_ids, strict=True)]
    )


def segment(layout, foreground, batch_size=4, shard=WHOLE, told_at_once=100, **measures):
    cut_out = OneModel("darkness", InTurn(foreground), MaskCleaner(128, True), InTurn(score))
    segmenter = RoundSegmenter(layout, cut_out, batch_size, 2, shard, measures)
    listed = follow_round(layout, 0, timeout_s=0)
    parts = (
        (total, made[at : at + told_at_once])
        for total, made in listed
        for at in range(0, len(made), told_at_once)
    )
    return segmenter(0, parts)


def contents(layout):
    return {path.relative_to(layout.root): path.read_bytes() for path in Path(layout.root).rglob("*.*")}


def test_mask_record_and_cut_out_agree(layout):
    generated = generate(layout, 0, 7)
    instances = segment(layout, Darkness())
    assert sorted(i.file for i in instances) == sorted(item.file for item in generated)
    seeds = {item.file: item.seed for item in generated}
    for instance in instances:
        assert instance.seed == seeds[instance.file]
        assert read_cut_out(layout, instance.file) == instance
        alpha = read_rgba(layout.segmented(instance.file))[..., 0]
        image = read_rgba(layout.raw(instance.file))
        np.testing.assert_array_equal(alpha, np.where(image[..., 1] < 255, 200, 0))
        assert instance.area == (alpha > 0).sum() and (instance.height, instance.width) == alpha.shape
        assert instance.clip_white == pytest.approx(instance.category_id / 7, abs=1e-4)
        assert instance.clip_black == pytest.approx(alpha.mean(), abs=1e-4)
        assert (instance.model, instance.prompt, instance.reason) == ("tiny", "a photo", "")
        assert instance.foreground == "darkness"
        x, y, width, height = instance.bbox
        window = np.s_[y : y + height, x : x + width]
        pasted = read_rgba(layout.cutout(instance.file))
        np.testing.assert_array_equal(pasted[..., :3], image[window][..., :3])
        np.testing.assert_array_equal(pasted[..., 3], alpha[window])


def test_batches_and_shards_give_the_same_files(layout, tmp_path):
    other = RunLayout(str(tmp_path / "other"))
    for run in (layout, other):
        generate(run, 0, 11)
    together = segment(layout, Darkness(), batch_size=1)
    apart = [segment(other, Darkness(), 4, Shard(index, 3)) for index in range(3)]
    assert sorted(together, key=repr) == sorted((i for part in apart for i in part), key=repr)
    assert contents(layout) == contents(other)
    for index, part in enumerate(apart):  # in every process, whatever its PYTHONHASHSEED
        assert part and {zlib.crc32(instance.file.encode()) % 3 for instance in part} == {index}


def test_a_second_call_recomputes_nothing(layout):
    generate(layout, 0, 6)
    segment(layout, Darkness())
    before, again = contents(layout), Darkness()
    segment(layout, again)
    assert again.seen == 0 and contents(layout) == before


def test_what_an_earlier_call_made_is_told_of_mask_by_mask(layout, monkeypatch):
    names = [item.file for item in generate(layout, 0, 6)]
    segment(layout, Darkness())
    os.remove(layout.segmented(names[2]))
    monkeypatch.setattr(segment_round, "tqdm", told := MagicMock())
    progress = told.return_value.__enter__.return_value
    progress.n = 0
    segment(layout, Darkness())
    assert progress.update.call_args_list == [call(True)] * 2 + [call(False)] + [call(True)] * 3 + [call(1)]


def test_only_what_is_missing_or_cut_off_is_made_again(layout):
    names = [item.file for item in generate(layout, 0, 6)]
    segment(layout, Darkness())
    before, again = contents(layout), Darkness()
    for path in (Path(layout.segmented(names[1])), Path(layout.cutout(names[4]))):
        path.write_bytes(path.read_bytes()[:-10])
    os.remove(layout.cutout(names[2]))
    files.write_bytes(layout.segmented(names[3]), files.read_bytes(layout.raw(names[3])))  # no record
    files.write_bytes(layout.segmented(names[5]), files.read_bytes(layout.segmented(names[0])))  # of another
    assert [i.file for i in segment(layout, again, told_at_once=2)] == names
    assert again.seen == 5 and contents(layout) == before


def test_objects_are_counted_before_the_largest_is_chosen(layout):
    generate(layout, 0, 2)

    class Corners(Darkness):
        def __call__(self, images):
            alphas = super().__call__(images)
            for alpha in alphas:
                alpha[:5, :5] = alpha[-5:, -5:] = 255
            return alphas

    assert [(i.objects, i.bbox[0] > 5) for i in segment(layout, Corners())] == [(3, True)] * 2


def test_images_without_an_object_are_done_too(layout):
    generate(layout, 0, 3)

    class Nothing(Darkness):
        def __call__(self, images):
            return [np.zeros_like(alpha) for alpha in super().__call__(images)]

    assert [i.area for i in segment(layout, Nothing())] == [0, 0, 0]
    again = Nothing()
    segment(layout, again)
    assert again.seen == 0 and not files.exists(layout.pool("cutouts"))


def test_what_shows_an_object_is_measured_and_nothing_else(layout):
    generate(layout, 0, 7)

    class Light(Darkness):
        """Finds something in one image of three alone, by how wide the disc is: threads take batches in any order."""

        def __call__(self, images):
            wide = [int((image[20, :, 1] < 255).sum()) // 2 for image in images]
            return [
                alpha * (radius % 3 == 1)
                for alpha, radius in zip(super().__call__(images), wide, strict=True)
            ]

    def dark(images, alphas, category_ids):
        assert all(alpha.any() for alpha in alphas)
        return [
            None if category == 7 else round(float(image[alpha > 0].mean()), 4)
            for image, alpha, category in zip(images, alphas, category_ids, strict=True)
        ]

    found = segment(
        layout, InTurn(Light()), batch_size=3, similarity=dark, judge=lambda images, *_: [0.0] * len(images)
    )
    assert {(bool(i.area), i.category_id) for i in found} == set(itertools.product((False, True), (3, 7)))
    for instance in found:
        expected = None
        if instance.area and instance.category_id == 3:
            mask = read_rgba(layout.segmented(instance.file))[..., 0]
            expected = pytest.approx(read_rgba(layout.raw(instance.file))[mask > 0].mean(), abs=1e-4)
        assert instance.similarity == expected and instance.judge == (0.0 if instance.area else None)
    assert (
        segment(layout, InTurn(Darkness()), batch_size=3, judge=None) == found
    )  # nothing is left to measure


def test_an_image_that_does_not_decode_is_tried_again_by_the_next_call(layout):
    names = [item.file for item in generate(layout, 0, 6)]
    good = files.read_bytes(layout.raw(names[2]))
    files.write_bytes(layout.raw(names[2]), good[:60])
    others = {*names[:2], *names[3:]}  # of the same batch, too
    assert {i.file for i in segment(layout, Darkness())} == others
    files.write_bytes(layout.raw(names[2]), good)
    assert names[2] in [i.file for i in segment(layout, Darkness())]
