import os
from pathlib import Path

import numpy as np
import pytest

from diSegmenter.checks import MaskCleaner
from diSegmenter.follow import follow_round
from diSegmenter.images import read_rgba
from diSegmenter.segment_round import RoundSegmenter
from exchange import files
from exchange.cutouts import read_round_cutouts
from tests.diSegmenter.conftest import generate


class Darkness:
    """A foreground model without a network; counts what it sees."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return [np.where(image[..., 1] < 255, 255, 3).astype(np.uint8) for image in images]


def score(images, alphas, category_ids):
    return np.array([[category, alpha.mean()] for alpha, category in zip(alphas, category_ids, strict=True)])


def segment(layout, foreground, batch_size=4, shard=0, num_shards=1, scorer=score):
    segmenter = RoundSegmenter(
        layout, foreground, MaskCleaner(128, True), scorer, batch_size, 2, shard, num_shards
    )
    segmenter(0, follow_round(layout, 0, timeout_s=0))


def contents(layout):
    folder = Path(layout.root)
    return {str(path): path.read_bytes() for path in folder.rglob("*.*")}


def test_mask_and_record_agree(layout):
    generate(layout, 0, 7)
    segment(layout, Darkness())
    cutouts, unreadable = read_round_cutouts(layout, 0)
    assert len(cutouts) == 7 and not unreadable
    for name, cutout in cutouts.items():
        alpha = read_rgba(layout.segmented(name))[..., 0]
        image = read_rgba(layout.raw(name))
        np.testing.assert_array_equal(alpha, np.where(image[..., 1] < 255, 255, 0))
        assert cutout.area == (alpha > 0).sum() and (cutout.height, cutout.width) == alpha.shape
        assert cutout.clip_white == cutout.category_id
        x, y, width, height = cutout.bbox
        window = np.s_[y : y + height, x : x + width]
        pasted = read_rgba(layout.cutout_image(name))
        np.testing.assert_array_equal(pasted[..., :3], image[window][..., :3])
        np.testing.assert_array_equal(pasted[..., 3], alpha[window])
        assert cutout.clip_black == pytest.approx(alpha.mean(), abs=1e-3)


def test_batches_and_shards_give_the_same_pool(layout, tmp_path):
    from exchange.layout import RunLayout

    other = RunLayout(str(tmp_path / "other"))
    for run in (layout, other):
        generate(run, 0, 11)
    segment(layout, Darkness(), batch_size=1)
    for shard in range(3):
        segment(other, Darkness(), 4, shard, 3)
    assert read_round_cutouts(layout, 0) == read_round_cutouts(other, 0)
    assert len(other.all_cutouts(0)) == 3


def test_a_second_call_recomputes_nothing(layout):
    generate(layout, 0, 6)
    segment(layout, Darkness())
    before, again = contents(layout), Darkness()
    segment(layout, again)
    assert again.seen == 0 and contents(layout) == before


def test_only_what_is_missing_or_cut_off_is_made_again(layout):
    instances = generate(layout, 0, 6)
    segment(layout, Darkness())
    before, again = contents(layout), Darkness()
    for path in (layout.segmented(instances[1].file), layout.cutout_image(instances[4].file)):
        files.write_bytes(path, before[path][:-10])
    os.remove(layout.cutout_image(instances[2].file))
    segment(layout, again)
    assert again.seen == 3 and contents(layout) == before


def test_a_call_that_dies_half_way_is_resumed(layout):
    generate(layout, 0, 8)

    class Dies(Darkness):
        def __call__(self, images):
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        segment(layout, Dies())
    again = Darkness()
    segment(layout, again)
    assert again.seen == 4
    assert len(read_round_cutouts(layout, 0)[0]) == 8


def test_an_image_that_does_not_decode_is_listed_and_tried_again(layout):
    instances = generate(layout, 0, 6)
    good = files.read_bytes(layout.raw(instances[2].file))
    files.write_bytes(layout.raw(instances[2].file), good[:60])
    segment(layout, Darkness())
    cutouts, unreadable = read_round_cutouts(layout, 0)
    assert unreadable == [instances[2].file] and len(cutouts) == 5
    files.write_bytes(layout.raw(instances[2].file), good)
    segment(layout, Darkness())
    cutouts, unreadable = read_round_cutouts(layout, 0)
    assert not unreadable and len(cutouts) == 6
