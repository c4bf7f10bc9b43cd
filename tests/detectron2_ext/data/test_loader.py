import json
import logging
import resource

import numpy as np
import pytest
import torch

from detectron2_ext.data.loader import (
    SkippedFiles,
    batches_in_order,
    build_dataset,
    build_test_loader,
    build_test_transform,
)
from detectron2_ext.engine import train_loader as train_loader_module
from detectron2_ext.engine.train_loader import build_train_loader
from detectron2_ext.paste.build import build_pool
from detectron2_ext.paste.triple import TestSchedule
from exchange.errors import UserError
from exchange.feedback import Feedback
from exchange.layout import RunLayout


def train_loader(cfg, **arguments):
    dataset = build_dataset(cfg, "small")
    finished = cfg.clone()
    finished.defrost()
    finished.INPUT.INST_POOL_FEED = False  # which says only that there are rounds
    pool = build_pool(finished, RunLayout("unused"), 0, dataset)
    return build_train_loader(cfg, **{"start_iteration": 0, "dataset": dataset, "pool": pool, **arguments})


IN_ROUNDS = ("INPUT.INST_POOL_FEED", "True")


def content(batches) -> dict[int, tuple]:
    """What identifies each image of the batches, by its place in the stream."""
    return {
        item["stream_index"]: (
            item["image"].sum().item(),
            item["instances"].gt_boxes.tolist(),
            [info.pool_index for info in item["paste_info"]],
        )
        for batch in batches
        for item in batch
    }


def test_a_selection_s_test_images_are_as_many_and_as_often_as_the_settings_say(configure, monkeypatch):
    schedules, of_images = [], []
    monkeypatch.setattr(train_loader_module, "TestImages", lambda *given: schedules.append(given[-1]))
    monkeypatch.setattr(train_loader_module, "TripleMapper", lambda *given: of_images.append(given))
    counts = ("MODEL.ACTIVE_TEST_BATCHSIZE", "1", "MODEL.ACTIVE_TEST_EVERY", "3")
    train_loader(configure("INPUT.ACTIVE_SELECT", "True", *counts), world_size=2)
    assert schedules == [TestSchedule(batch_size=4, world_size=2, most=1, every=3)] and len(of_images) == 1


def test_processes_fetch_some_batches_ahead_and_none_fetches_nothing(configure):
    train_loader(configure("DATALOADER.NUM_WORKERS", "0", "DATALOADER.PREFETCH_FACTOR", "0"))
    with pytest.raises(UserError, match=r"^DATALOADER\.PREFETCH_FACTOR is 0: it is 1 or more$"):
        train_loader(configure("DATALOADER.NUM_WORKERS", "1", "DATALOADER.PREFETCH_FACTOR", "0"))


class Limits:
    """Tells, for any image, how many files the process that loads it may have open: now, and at most."""

    def __getitem__(self, place: int) -> tuple[int, int]:
        return resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_loader_s_process_may_have_as_many_files_open_as_the_system_lets_it(configure):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        ((told,),) = batches_in_order(configure("DATALOADER.NUM_WORKERS", "1"), Limits(), [0], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told == (hard, hard)


def test_batches_are_the_same_for_any_number_of_workers_and_ranks(configure):
    expected = content(train_loader(configure(), num_iterations=6))
    assert sorted(expected) == list(range(24))
    cfg = configure("DATALOADER.NUM_WORKERS", "2")
    assert content(train_loader(cfg, num_iterations=6)) == expected
    assert train_loader(cfg)._loader.num_workers == 2
    loaded = [list(train_loader(cfg, num_iterations=6, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [[len(batch) for batch in batches] for batches in loaded] == [[2] * 6] * 2
    ranks = [content(batches) for batches in loaded]
    assert {**ranks[0], **ranks[1]} == expected and not ranks[0].keys() & ranks[1].keys()


@pytest.mark.parametrize("grouping", [True, False])
def test_the_images_of_a_batch_are_of_one_orientation_where_the_settings_say(
    configure, filled_lvis, grouping
):
    content = json.loads(filled_lvis.path.read_text())
    for image in content["images"][:5]:  # whose files are not opened
        image["width"], image["height"] = 48, 64
    content["images"][5]["width"] = content["images"][5]["height"] = 48  # a square is not wide
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1]  # which is left out
    filled_lvis.path.write_text(json.dumps(content))
    cfg = configure("DATALOADER.ASPECT_RATIO_GROUPING", str(grouping))
    narrow = {image["id"] for image in content["images"][:6]}
    orders = []
    for world_size in (1, 2):
        loaders = [
            build_train_loader(cfg, start_iteration=0, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
        orders.append({k: index + 1 in narrow for each in loaders for k, index in each._loader.sampler})
    assert orders[0] == orders[1]
    batches = [[orders[0][4 * n + i] for i in range(4)] for n in range(30)]
    assert all(len(set(batch)) == 1 for batch in batches) == grouping
    assert 0.3 < np.mean(batches) < 0.7


def test_a_resumed_training_sees_what_an_uninterrupted_one_sees(configure):
    whole = content(train_loader(configure()))
    resumed = content(train_loader(configure(), start_iteration=17, num_iterations=13))
    first_round = {k: v for k, v in whole.items() if k < 40}
    assert content(train_loader(configure(), start_iteration=5, num_iterations=5)) == {
        k: v for k, v in first_round.items() if k >= 20
    }
    assert sorted(resumed) == list(range(68, 120))
    assert {
        k: v[1:] for k, v in content(train_loader(configure(), start_iteration=10)).items() if k >= 68
    } == {k: v[1:] for k, v in resumed.items()}


def test_the_default_length_is_what_the_schedule_leaves(configure):
    loader = train_loader(configure(), start_iteration=26)
    assert len(loader) == 4 == len(list(loader))


def feedback(box_ap, categories=(10, 20, 30)) -> Feedback:
    none = [None] * len(categories)
    where = (1, 20, "m.pth", "0" * 64, "small", list(categories))
    return Feedback(*where, box_ap, none, none, 0.0, 0.0, None, None, None, "")


def test_a_training_set_without_an_object_is_nothing_to_train_on(configure, filled_lvis):
    cfg = configure("INPUT.USE_COPY_METHOD", "none")
    for annotation in filled_lvis.annotations:
        annotation["iscrowd"] = 1
    filled_lvis.write()
    with pytest.raises(UserError, match="data set small has no image with an object"):
        build_train_loader(cfg, start_iteration=0)


def test_feedback_changes_object_sizes_from_its_round_on(configure):
    cfg, low_first = configure(*IN_ROUNDS), feedback([1.0, 50.0, 90.0])
    for iteration, changes in ((19, False), (20, True)):
        areas = []
        for given in (None, low_first):
            items = list(train_loader(cfg, start_iteration=iteration, num_iterations=1, feedback=given))[0]
            infos = [info for item in items for info in item["paste_info"]]
            areas.append([(info.pool_index, info.box) for info in infos])
        assert (areas[0] != areas[1]) == changes
    plain = configure("INPUT.INST_POOL_ADAPTIVE_SIZE", "False", *IN_ROUNDS)
    assert content(train_loader(plain, start_iteration=20, feedback=low_first)) == content(
        train_loader(plain, start_iteration=20)
    )


@pytest.mark.parametrize("categories", [(10, 20), (10, 20, 31)])
def test_feedback_about_other_categories_is_refused(configure, categories):
    with pytest.raises(UserError, match="not those of DATASETS.TRAIN"):
        train_loader(
            configure(*IN_ROUNDS), start_iteration=20, feedback=feedback([1.0, 2.0, 3.0], categories)
        )


def test_more_than_five_percent_of_bad_files_are_an_error_and_fewer_are_listed(
    configure, filled_lvis, caplog
):
    (filled_lvis.folder / "0002.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="1 files of a data set of 12 images cannot be used"):
        list(train_loader(configure()))
    with pytest.raises(UserError, match="cannot be used"):
        list(build_test_loader(configure(), build_dataset(configure(), "small")))
    skipped = SkippedFiles(40)
    skipped.add(["one", "two", "one"])
    assert caplog.messages.count("skipped one") == 1
    with pytest.raises(UserError, match="3 files of a data set of 40"):
        skipped.add(["three"])
    for _ in range(20):
        filled_lvis.add_object(filled_lvis.add_image(), 0, [1, 1, 9, 9])
    filled_lvis.write()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert len(list(train_loader(configure()))) == 30
        tested = list(build_test_loader(configure(), build_dataset(configure(), "small")))
        of_two = build_test_loader(configure(), build_dataset(configure(), "small"), rank=1, world_size=2)
        assert len(list(of_two)) == 15
    assert len(tested) == 31 and {item["image_id"] for batch in tested for item in batch} == {
        1,
        *range(3, 33),
    }
    assert caplog.text.count("1 files were skipped") == 3 and "0002.png" in caplog.text


def test_test_images_are_seen_once_in_order_by_all_ranks_together(configure):
    cfg = configure("DATALOADER.NUM_WORKERS", "2")
    dataset = build_dataset(cfg, "small")
    parts = [
        [
            item["image_id"]
            for batch in build_test_loader(cfg, dataset, rank=r, world_size=5)
            for item in batch
        ]
        for r in (0, 1, 4)
    ]
    assert parts == [[1, 6, 11], [2, 7, 12], [5, 10]]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.CP_METHOD", "[smooth]", "choose from basic"),
        ("INPUT.CP_METHOD", "[]", "choose from basic"),
        ("INPUT.INST_POOL_SAMPLE_TYPE", "all", "choose from uniform"),
        ("INPUT.USE_COPY_METHOD", "p:2", "choose from none, syn_copy, self_copy, both, p:0.5"),
        ("INPUT.USE_COPY_METHOD", "p:half", "choose from none, syn_copy, self_copy, both, p:0.5"),
        ("INPUT.USE_COPY_METHOD", "copy", "choose from none"),
        ("INPUT.USE_COPY_METHOD", "[both]", "choose from none"),
        ("INPUT.INST_POOL_SIZE", "large", "choose from statistics, uniform, statistics_or_uniform, native"),
        ("INPUT.INST_POOL_RANK", "clip", "an annotation file has no ranks"),
        ("INPUT.FORMAT", "RBG", "choose from RGB, BGR"),
        ("INPUT.CUSTOM_AUG", "ResizeShortestEdge", "choose from EfficientDetResizeCrop"),
        ("INPUT.RANDOM_FLIP", "sometimes", "choose from horizontal, none"),
        ("DATALOADER.SAMPLER_TRAIN", "Other", "choose from RepeatFactorTrainingSampler"),
        ("INPUT.INST_POOL", "False", "there is no pool"),
        ("INPUT.INST_POOL_PATH", "runs/nowhere", "where there is no pool: give a run folder"),
        ("SOLVER.IMS_PER_BATCH", "3", "does not divide among 2 processes"),
        ("INPUT.SCALE_RANGE", "[1.0]", r"SCALE_RANGE is \[1\.0\]: it takes two numbers"),
        ("INPUT.SCALE_RANGE", "[1.0, 0.5]", r"SCALE_RANGE is \[1\.0, 0\.5\]: .* the smaller one first"),
        ("INPUT.SCALE_RANGE", "[0.0, 0.5]", r"SCALE_RANGE is .*: it is two numbers above 0"),
        ("INPUT.TRAIN_SIZE", "0", "TRAIN_SIZE is 0: it is 1 or more"),
        ("DATALOADER.NUM_WORKERS", "-1", "NUM_WORKERS is -1: it is 0 or more"),
    ],
)
def test_a_setting_that_does_not_exist_is_named_with_the_choices(configure, key, value, message):
    with pytest.raises(UserError, match=message):
        train_loader(configure(key, value), world_size=2)


def test_an_image_is_tested_at_the_size_of_its_shorter_side_as_far_as_the_longer_one_lets_it(configure):
    cfg = configure("INPUT.MIN_SIZE_TEST", "24", "INPUT.MAX_SIZE_TEST", "40")
    assert build_test_transform(cfg)(np.zeros((60, 80, 3), np.uint8)).shape == (3, 24, 32)
    assert build_test_transform(cfg)(np.zeros((60, 120, 3), np.uint8)).shape == (3, 20, 40)


@pytest.mark.parametrize("key", ["INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"])
def test_images_are_tested_on_at_a_size_of_a_pixel_at_least(configure, key):
    with pytest.raises(UserError, match=f"^{key} is 0: it is 1 or more$"):
        build_test_loader(configure(key, "0"), build_dataset(configure(), "small"))


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("INPUT.INST_POOL_SAMPLE_TYPE random", "INPUT.INST_POOL_MAX_SAMPLES", "0", "is 0: it is 1 or more"),
        ("INPUT.INST_POOL_SIZE uniform", "INPUT.INST_POOL_SIZE_RANGE", "[0.1]", "it takes two numbers"),
    ],
)
def test_a_number_that_a_kind_of_pasting_cannot_have_is_refused(configure, kind, key, value, message):
    with pytest.raises(UserError, match=f"{key} .*{message}"):
        train_loader(configure(*kind.split(), key, value))


@pytest.mark.parametrize("kind", ["one", "random", "cas_random", "cats_random", "weighted", "reference"])
def test_every_kind_of_sampling_pastes_from_the_pool(configure, kind):
    cfg = configure("INPUT.INST_POOL_SAMPLE_TYPE", kind, "INPUT.INST_POOL_MAX_SAMPLES", "4")
    items = [item for batch in train_loader(cfg) for item in batch]
    infos = [info for item in items for info in item["paste_info"]]
    assert len({info.pool_index for info in infos}) >= 8
    most = {"one": 2, "weighted": 2, "reference": 5}.get(kind, 3)
    assert max(len(item["paste_info"]) for item in items) == most


@pytest.mark.parametrize(
    ("method", "from_pool", "from_images"),
    [
        ("none", False, False),
        ("syn_copy", True, False),
        ("self_copy", False, True),
        ("both", True, True),
        ("p:0.5", True, True),
        ("p:0", True, False),
        ("p:1", False, True),
    ],
)
def test_objects_come_from_where_the_method_says(configure, method, from_pool, from_images):
    cfg = configure("INPUT.USE_COPY_METHOD", method)
    pool = build_pool(cfg, RunLayout("unused"), 0, build_dataset(cfg, "small"))
    assert (pool is None) == (method in ("none", "self_copy"))
    items = [item for batch in train_loader(cfg) for item in batch]
    sources = [[info.pool_index >= 0 for info in item["paste_info"]] for item in items]
    assert any(True in image for image in sources) == from_pool
    assert any(False in image for image in sources) == from_images
    if method == "both":  # objects of another image lie over those of the pool
        assert all(image == sorted(image, reverse=True) for image in sources)
    if method == "p:0.5":
        assert not any(len(set(image)) == 2 for image in sources)
    for item in items:
        if not item["paste_info"]:
            assert not item["instances"].instance_source.any()


def test_sizes_rotation_and_colour_follow_the_settings(configure):
    plain = content(train_loader(configure(), num_iterations=4))
    for overrides in (
        ("INPUT.INST_POOL_SIZE", "native"),
        ("INPUT.INST_POOL_SIZE", "uniform"),
        ("INPUT.RANDOM_ROTATE", "True"),
        ("INPUT.COLOR_AUG", "True"),
    ):
        assert content(train_loader(configure(*overrides), num_iterations=4)) != plain


@pytest.mark.parametrize(
    ("part", "method", "changes"), [("src", "none", False), ("src", "self_copy", True), ("dst", "none", True)]
)
def test_colours_change_in_training_images_or_in_those_copied_from(configure, part, method, changes):
    jitter = ("INPUT.COLOR_JITTER_FREQ_FILTER", "[r, c, f]", "INPUT.COLOR_JITTER_APPLY_TYPE", part)
    seen = []
    for on in ("False", "True"):
        cfg = configure("INPUT.USE_COPY_METHOD", method, "INPUT.USE_COLOR_JITTER", on, *jitter)
        seen.append(content(train_loader(cfg, num_iterations=6)))
    assert (seen[0] != seen[1]) == changes


def test_images_are_repeated_only_as_the_sampler_and_its_threshold_say(configure, filled_lvis):
    filled_lvis.add_image()  # without an object
    filled_lvis.write()
    seen = {}
    for sampler in ("TrainingSampler", "RepeatFactorTrainingSampler"):
        cfg = configure("DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", "1.0")
        seen[sampler] = [item["image_id"] for batch in train_loader(cfg) for item in batch]
    for epoch in range(10):
        assert sorted(seen["TrainingSampler"][12 * epoch : 12 * (epoch + 1)]) == list(range(1, 13))
    counts = np.bincount(seen["RepeatFactorTrainingSampler"], minlength=14)
    assert counts[1] > 1.5 * counts[2:].max() and counts[13] == 0  # it alone shows class 2


def test_the_networks_order_of_channels_reaches_training_and_testing(configure):
    rgb, bgr = configure(), configure("INPUT.FORMAT", "BGR")
    dataset = build_dataset(rgb, "small")
    for build in (train_loader, lambda cfg: build_test_loader(cfg, dataset)):
        one, other = (next(iter(build(cfg)))[0]["image"] for cfg in (rgb, bgr))
        assert torch.equal(one, other.flip(0)) and not torch.equal(one, other)


@pytest.mark.parametrize(("flip", "views"), [("none", 1), ("horizontal", 2)])
def test_images_are_mirrored_only_where_the_settings_say(configure, flip, views):
    cfg = configure("INPUT.RANDOM_FLIP", flip, "INPUT.SCALE_RANGE", "[1, 1]", "INPUT.USE_COPY_METHOD", "none")
    seen = {}
    for batch in train_loader(cfg):
        for item in batch:
            seen.setdefault(item["image_id"], set()).add(item["image"].numpy().tobytes())
    assert max(map(len, seen.values())) == views


def test_a_round_begins_with_a_pass_over_the_whole_pool_in_an_order_of_its_seed(configure):
    large = ("INPUT.TRAIN_SIZE", "300", "INPUT.SCALE_RANGE", "[1, 2]")  # so that every target fits
    orders = []
    for seed in ("0", "1"):
        cfg = configure(*large, *IN_ROUNDS, "SEED", seed)
        items = [item for batch in train_loader(cfg, start_iteration=10, num_iterations=4) for item in batch]
        orders.append([info.pool_index for item in items for info in item["paste_info"]][:11])
        assert sorted(orders[-1]) == list(range(11))
    assert orders[0] != orders[1]


def test_another_seed_gives_other_images(configure):
    assert content(train_loader(configure("SEED", "1"))) != content(train_loader(configure()))
