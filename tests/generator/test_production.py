"""A shard of a round with a sampler that needs no model."""

import dataclasses
import errno
import itertools
import os
import threading
from unittest.mock import Mock

import numpy as np
import pytest

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.manifest import read_manifest, write_manifest
from exchange.shards import Shard
from generator import production
from generator.plan import Model, PromptBook, batches_of_shard, plan_round, share_among
from generator.production import produce
from generator.sampling import SampledImage

WHOLE = Shard()
CATEGORIES = [{"id": 3, "name": "cow"}, {"id": 7, "name": "dog"}]


@pytest.fixture
def plan():
    return plan_round(CATEGORIES, np.array([4, 6]), PromptBook(["a {}", "the {}"]), run_seed=0, round_=2)


def draw(batch, left_out=0):
    return [
        SampledImage(np.full((4, 4, 3), image.seed % 256, np.uint8), 0.1, 0.2, left_out) for image in batch
    ]


def make(layout, plan, begin=lambda images: draw, shard=WHOLE, guided=True):
    return produce(layout, 2, plan, shard, 3, guided, begin)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_shards_divide_the_batches_evenly_and_leave_none_out(plan, count):
    shards = [list(batches_of_shard(plan, 2, Shard(index, count))) for index in range(count)]
    assert sorted(i.file for batch in itertools.chain(*shards) for i in batch) == [i.file for i in plan]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert {tuple(batch) for batch in itertools.chain(*shards)} == {
        tuple(batch) for batch in batches_of_shard(plan, 2, WHOLE)
    }


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_is_of_one_model_and_a_shard_takes_one_model_after_the_other(plan, count):
    shared = share_among(plan, [Model("a", 1, "main"), Model("b", 2, "main")])
    for index in range(count):
        batches = batches_of_shard(shared, 2, Shard(index, count))
        of_batches = [{image.model for image in batch} for batch in batches]
        assert all(len(names) == 1 for names in of_batches)
        models = [name for names in of_batches for name in names]
        assert len(list(itertools.groupby(models))) == len(set(models))


def test_only_what_is_to_be_drawn_is_prepared(tmp_path, plan):
    layout = RunLayout(str(tmp_path))
    make(layout, plan)
    (tmp_path / "pool/raw" / plan[4].file).unlink()
    os.utime(there := tmp_path / "pool/raw" / plan[3].file, (0, 0))
    write_manifest(layout, dataclasses.replace(read_manifest(layout.manifest(2, 0, 1)), seconds=100.0))
    prepared = []
    assert make(layout, plan, lambda images: prepared.extend(images) or draw).seconds > 100  # of both calls
    assert prepared == plan[3:6]  # the whole batch, so that its pixels are the same
    assert there.stat().st_mtime == 0  # and only what was missing is written


def test_a_plan_that_shrank_to_what_was_drawn_of_the_first_one_is_complete(tmp_path, plan):
    layout = RunLayout(str(tmp_path))
    of_first = dataclasses.replace(make(layout, plan[:6]), complete=False)
    write_manifest(layout, of_first)
    assert make(layout, plan[:6]).complete and read_manifest(layout.manifest(2, 0, 1)).complete


def test_what_is_there_is_told_of_image_by_image_while_it_is_read(tmp_path, plan, monkeypatch):
    layout, told, all_but_last = RunLayout(str(tmp_path)), [], threading.Event()
    make(layout, plan)
    (tmp_path / "pool/raw" / plan[4].file).unlink()
    there = [image.file for image in plan if image is not plan[4]]
    read_record = production.read_record

    def tqdm(records, label, total, **settings):
        for record in records:
            told.append(record.file)
            if told == there[:-1] and total == len(there):
                all_but_last.set()
            yield record

    def read(kind, path):
        assert not path.endswith(there[-1]) or all_but_last.wait(60)
        return read_record(kind, path)

    monkeypatch.setattr(production, "tqdm", tqdm)
    monkeypatch.setattr(production, "read_record", read)
    with pytest.raises(StopIteration):
        make(layout, plan, Mock(side_effect=StopIteration))
    assert told == there


def test_images_made_in_another_way_than_planned_are_drawn_again(tmp_path, plan):
    layout = RunLayout(str(tmp_path))
    make(layout, plan, guided=False)
    prepared = []
    make(layout, plan, lambda images: prepared.extend(images) or draw, guided=True)
    assert prepared == plan
    other_prompts = [dataclasses.replace(image, prompt="another") for image in plan[:5]] + plan[5:]
    make(layout, other_prompts, lambda images: prepared.extend(images) or draw, guided=True)
    assert prepared[10:] == other_prompts[:6]  # the batches that hold them


def test_manifest_counts_what_was_asked_and_lists_what_was_made(tmp_path, plan):
    layout = RunLayout(str(tmp_path))
    manifest = make(layout, plan, shard=Shard(1, 2))
    assert manifest == read_manifest(layout.manifest(2, 1, 2))
    assert manifest.complete and manifest.asked == {3: 1, 7: 3}
    assert [record.file for record in manifest.instances] == [i.file for i in plan[3:6] + plan[9:]]
    assert {(r.criterion_before, r.criterion_after) for r in manifest.instances} == {(0.1, 0.2)}
    planned, made = (
        [(i.category_id, i.instance, i.seed, i.template, i.prompt, i.model) for i in images]
        for images in (plan[3:6] + plan[9:], manifest.instances)
    )
    assert made == planned


def test_second_process_on_the_same_shard_stops(tmp_path, plan):
    layout = RunLayout(str(tmp_path))
    make(layout, plan, shard=Shard(0, 2))
    with only_one(layout, "generate_0of2"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is at 'generate_0of2' already"):
            make(layout, plan, shard=Shard(0, 2))
        make(layout, plan, shard=Shard(1, 2))


def test_full_disk_stops_with_the_number_of_missing_images_and_nothing_in_part(tmp_path, plan, monkeypatch):
    layout = RunLayout(str(tmp_path))
    make(layout, plan)
    for image in plan[4:]:
        (tmp_path / "pool/raw" / image.file).unlink()
    write, room = files.write_bytes, iter([True])

    def write_while_there_is_room(path, data):
        if path.endswith(".png") and not next(room, False):
            raise OSError(errno.ENOSPC, "no space left on device", path)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", write_while_there_is_room)
        with pytest.raises(UserError, match="5 images are missing"):
            make(layout, plan)
    assert len(list((tmp_path / "pool/raw").glob("*.png"))) == 5
    assert not read_manifest(layout.manifest(2, 0, 1)).complete
    assert make(layout, plan).complete


def test_images_with_a_step_without_guidance_are_listed(tmp_path, plan, caplog):
    make(
        RunLayout(str(tmp_path)), plan, lambda images: lambda batch: draw(batch, left_out=batch == plan[3:6])
    )
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("3 images") and plan[4].file in warning and plan[0].file not in warning
