"""Rounds of one pool in another: nothing comes twice, nothing is lost."""

from unittest.mock import Mock

import numpy as np
import pytest

from diSegmenter.pool import move
from diSegmenter.pool.drop import drop
from diSegmenter.pool.move import merge, pack
from diSegmenter.pool.prune import prune_dropped, prune_duplicates
from diSegmenter.pool.verify import verify
from exchange import files, pool_index
from exchange.cutouts import encode_cutout
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex
from tests.diSegmenter.conftest import CATEGORIES
from tests.diSegmenter.pool.two_rounds import IDS, change, layout, pixels, pool

__all__ = ["layout", "pool"]


def test_a_merged_pool_keeps_every_cut_out_until_its_duplicates_go(pool, tmp_path, monkeypatch):
    out, before, told = RunLayout(str(tmp_path / "out")), pixels(pool), []
    monkeypatch.setattr(files, "flush_all", lambda: told.append(out.pool_rounds()))
    assert merge(out, pool, CATEGORIES) == 6
    assert told == [[], [0]]  # an index tells of cut-outs that are on the disk
    pack(out, 1)
    for round_, other in enumerate(({"seed": 7}, {"prompt": "another"})):
        change(pool, round_, 0, **other)  # no round that was copied before
    assert merge(out, pool, CATEGORIES) == 6
    assert pixels(out) == before * 2 and pixels(pool) == before
    assert PoolIndex(out, out.pool_rounds()).column("round").tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert ["the same picture as" in problem.what for problem in verify(out, IDS)] == [True] * 6
    assert prune_duplicates(out, CATEGORIES) == 6 and prune_duplicates(out, CATEGORIES) == 0
    assert [prune_dropped(out, round_) for round_ in range(4)] == [0, 0, 3, 3]
    assert pixels(out) == before and list(verify(out, IDS)) == []


@pytest.mark.parametrize("killed_at", ["write_as", "finish_import"])
def test_a_merge_that_is_killed_is_made_good_by_the_same_call(killed_at, pool, tmp_path, monkeypatch):
    out = RunLayout(str(tmp_path / "out"))
    where = PoolIndex if killed_at == "write_as" else move
    function = getattr(where, killed_at)

    def killed(*args, **columns):
        if 1 in args:
            raise KeyboardInterrupt
        function(*args, **columns)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, killed_at, killed)
        merge(out, pool, CATEGORIES)
    assert merge(out, pool, CATEGORIES) == (3 if killed_at == "write_as" else 0)
    assert pixels(out) == pixels(pool) and merge(out, pool, CATEGORIES) == 0
    assert all(files.exists(out.annotations_done(round_)) for round_ in (0, 1))


def test_a_round_whose_pictures_alone_are_others_is_merged(layout, tmp_path):
    out = RunLayout(str(tmp_path / "out"))
    assert merge(out, layout, CATEGORIES) == 6
    for index in (PoolIndex(layout, [0]), PoolIndex(layout, [1])):
        image, alpha = np.zeros((*index.size(0), 3), np.uint8), np.full(index.size(0), 255, np.uint8)
        files.write_bytes(index.name(0), encode_cutout(image, alpha, [0, 0, *index.size(0)[::-1]]))
    before = pixels(out)
    assert merge(out, layout, CATEGORIES) == 6
    assert pixels(out) == before + pixels(layout)
    drop(out, [], [], [2], CATEGORIES)
    assert prune_dropped(out, 2) == 3 and merge(out, layout, CATEGORIES) == 0


def test_rounds_of_the_same_content_are_both_merged_though_the_first_was_before(layout, tmp_path):
    out, twice = RunLayout(str(tmp_path / "out")), RunLayout(str(tmp_path / "twice"))
    merge(twice, layout, CATEGORIES)
    for round_ in (0, 1):
        PoolIndex(twice, [0]).write_as(twice, round_)
    merge(out, twice, CATEGORIES)
    files.remove(out.pool_index(1))
    assert merge(out, twice, CATEGORIES) == 3 and merge(out, twice, CATEGORIES) == 0
    assert pixels(out) == pixels(twice)


def test_pools_are_merged_packed_pruned_and_dropped_from_without_an_object_for_each_instance(
    layout, tmp_path, monkeypatch
):
    out, kept = RunLayout(str(tmp_path / "out")), list(PoolIndex(layout, [0, 1]))
    with monkeypatch.context() as patch:
        patch.setattr(pool_index, "PoolInstance", Mock(side_effect=MemoryError))
        for _ in range(2):
            assert merge(out, layout, CATEGORIES) == 6
            for round_ in (0, 1):  # no round that was copied before
                index = PoolIndex(layout, [round_], dropped_too=True)
                index.write_as(layout, round_, model=np.array(["another"] * len(index), object))
        assert [pack(out, round_) for round_ in range(4)] == [3] * 4
        assert prune_duplicates(out, CATEGORIES) == 6
        assert drop(out, [], [], [1], CATEGORIES) == {1: 3}
        assert [prune_dropped(out, round_) for round_ in range(4)] == [0] * 4
    merged = list(PoolIndex(out, range(4), dropped_too=True))
    assert [i.reason for i in merged] == [""] * 3 + ["by hand"] * 3 + ["duplicate"] * 6
    assert [i.segmentation for i in merged] == [i.segmentation for i in kept] * 2
