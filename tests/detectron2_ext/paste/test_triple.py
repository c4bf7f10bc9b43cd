"""The three forms of a training image that gradient selection looks at."""

import numpy as np
import pytest
import torch

from detectron2_ext.data.mapper import PasteInfo, TrainMapper
from detectron2_ext.data.view import ResizeCropFlip, SceneReader
from detectron2_ext.paste.composite import RandomMirror, basic
from detectron2_ext.paste.pasters import ImagePaster, PoolPaster
from detectron2_ext.paste.plan import RandomDraws, Scattered, UniformSize
from detectron2_ext.paste.pool import ImagesWithMasks, InstancePool
from detectron2_ext.paste.sources import AnyImage
from detectron2_ext.paste.triple import TestImages, TestSchedule, TripleMapper


@pytest.fixture
def mappers(filled_lvis, write_pool):
    """Of triples, of the same images with and without pasted objects, and the data set."""
    path = write_pool(7)
    dataset = filled_lvis.read()
    pool = InstancePool(ImagesWithMasks.of_annotations(str(path), str(path.parent)), dataset.category_ids)
    plan = Scattered(pool.categories, RandomDraws(len(pool), (0, 3)), UniformSize(0.4, 0.4))
    pasters = [PoolPaster(pool, plan, [RandomMirror()], [basic])]
    reader, images = SceneReader(dataset, ResizeCropFlip(64, (0.5, 1.5))), dataset.trainable_images()
    with_pasted, without = (TrainMapper(reader, images, some, seed=5) for some in (pasters, []))

    def triples(wanted=lambda k: True):
        return TripleMapper(with_pasted, TestImages(reader, 5, wanted), pool)

    return triples, with_pasted, without, dataset


def test_pasted_and_original_image_are_one_view_with_and_without_pasted_objects(mappers):
    triples, with_pasted, without, _ = mappers
    mapper, counts = triples(), []
    for k in range(12):
        item, pasted, original = mapper[k, k], with_pasted[k, k], without[k, k]
        for ours, theirs in ((item, pasted), (item["original"], original)):
            assert torch.equal(ours["image"], theirs["image"])
            for name, field in theirs["instances"].fields():
                mine = getattr(ours["instances"], name)
                same = (m.to_full() if name == "gt_masks" else m for m in (mine, field))
                assert torch.equal(*same), name
        assert item["file_name"] == item["original"]["file_name"] == original["file_name"]
        assert item["paste_info"] == pasted["paste_info"]
        counts.append(len(item["paste_info"]))
        named = [(f"00_{10 * (i.pool_index % 3 + 1):04}_{i.pool_index:04}.png") for i in item["paste_info"]]
        assert [name for name, _ in item["pasted_instances"]] == named
        assert [c for _, c in item["pasted_instances"]] == [
            10 * (i.class_index + 1) for i in item["paste_info"]
        ]
    assert set(counts) == {0, 1, 2}


def test_a_test_image_shows_objects_of_one_class_of_those_just_pasted(mappers):
    triples, _, _, dataset = mappers
    mapper, seen, of_both = triples(), set(), set()
    shown_in = {dataset.record(i).file_name: set(dataset.record(i).classes) for i in range(len(dataset))}
    for k in range(80):
        item = mapper[k, k % 12]
        pasted = {info.class_index for info in item["paste_info"]}
        if item["test"] is None:
            assert not pasted or pasted == {2}  # of which there is one object, that a view may not show
            continue
        (class_index,) = set(item["test"]["instances"].gt_classes.tolist())
        assert class_index in pasted and class_index in shown_in[item["test"]["file_name"]]
        seen.add((class_index, item["test"]["file_name"]))
        of_both |= {class_index} if pasted == {0, 1} else set()
    assert {class_index for class_index, _ in seen} == {0, 1, 2} and len(seen) > 12 and of_both == {0, 1}
    assert mapper[7, 7]["test"] is None or torch.equal(
        mapper[7, 7]["test"]["image"], triples()[7, 7]["test"]["image"]
    )


def test_the_first_images_of_each_process_have_test_images_in_one_of_several_iterations(mappers):
    schedule = TestSchedule(batch_size=8, world_size=2, most=3, every=2)
    assert [k for k in range(32) if schedule(k)] == [0, 1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 21]
    triples = mappers[0]
    assert all(triples(lambda k: False)[k, k]["test"] is None for k in range(12))


def test_a_class_that_no_training_image_shows_has_no_test_image(mappers):
    dataset = mappers[3]
    tests = TestImages(SceneReader(dataset, ResizeCropFlip(64, (1.0, 1.0))), 5, lambda k: True)
    shown, unseen = (PasteInfo(class_index, (0, 0, 9, 9)) for class_index in (0, dataset.num_classes))
    assert tests(3, [unseen], []) is None and tests(3, [], []) is None
    for k in range(9):
        scene, _ = tests(k, [unseen, shown], [])
        assert {each.class_index for each in scene.objects} == {0}


def test_ten_views_may_show_no_object_of_the_class(mappers):
    dataset, shows_at = mappers[3], 10

    class Reader(SceneReader):
        def __call__(self, *arguments):
            views.append(scene := super().__call__(*arguments))
            scene.objects = scene.objects if len(views) >= shows_at else []
            return scene

    tests = TestImages(Reader(dataset, ResizeCropFlip(64, (1.0, 1.0))), 5, lambda k: True)
    views, pasted = [], [PasteInfo(0, (0, 0, 9, 9))]
    scene, _ = tests(3, pasted, [])
    assert scene is views[9]
    views, shows_at = [], 11
    assert tests(3, pasted, []) is None and len(views) == 10


def test_objects_copied_from_images_are_no_instances_of_the_pool(mappers):
    dataset = mappers[3]
    reader, images = SceneReader(dataset, ResizeCropFlip(64, (1.0, 1.0))), dataset.trainable_images()
    copying = TrainMapper(reader, images, [ImagePaster(reader, AnyImage(images), [basic])], seed=5)
    items = [TripleMapper(copying, TestImages(reader, 5, lambda k: True), None)[k, k] for k in range(9)]
    assert any(item["paste_info"] and item["test"] for item in items)
    assert not any(item["pasted_instances"] for item in items)


def test_an_unreadable_test_image_is_said_and_another_one_drawn(mappers, filled_lvis):
    triples, _, _, dataset = mappers
    mapper = triples()
    k = next(k for k in range(12) if mapper[k, k]["test"] is not None)
    gone = mapper[k, k]["test"]["file_name"]
    index = next(i for i in range(len(dataset)) if dataset.record(i).file_name != gone)
    (filled_lvis.folder / gone.rsplit("/", 1)[1]).unlink()
    item = mapper[k, index]
    assert any(gone in sentence for sentence in item["skipped"])
    assert item["test"] is None or item["test"]["file_name"] != gone
    assert np.ndim(item["image"]) == 3
