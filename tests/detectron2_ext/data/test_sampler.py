import itertools

import numpy as np
import pytest

from detectron2_ext.data.sampler import GroupedStream, ImageStream, StreamSampler, generator, repeat_factors


def stream(seed: int = 3) -> ImageStream:
    return ImageStream(np.arange(10, 17), np.array([1.0, 1.5, 2.25, 1.0, 3.0, 1.1, 1.0]), seed)


def test_every_purpose_of_every_seed_has_numbers_of_its_own_at_every_position():
    drawn = {generator(*place).integers(1 << 62) for place in itertools.product(range(3), repeat=4)}
    assert len(drawn) == 3**4


def test_repeat_factors_are_those_of_the_lvis_paper(small_lvis):
    contents = [[0], [0], [0, 1], [0], [0, 2, 1], [0], [0], [0]]
    for objects in contents:
        image = small_lvis.add_image()
        for category in objects:
            small_lvis.add_object(image, category, [1, 1, 9, 9])
    threshold = 0.3
    frequency = np.array([sum(c in objects for objects in contents) for c in range(3)]) / len(contents)
    expected = [max(max(1.0, (threshold / frequency[c]) ** 0.5) for c in objects) for objects in contents]
    np.testing.assert_allclose(repeat_factors(small_lvis.read(), np.arange(8), threshold), expected)
    assert max(expected) > 1.5


def test_a_crowd_neither_counts_nor_repeats_its_image(small_lvis):
    small_lvis.add_image()  # without an object, so that it is not trained on
    for crowd in (0, 1):
        image = small_lvis.add_image()
        small_lvis.add_object(image, 0, [1, 1, 9, 9])
        small_lvis.add_object(image, 1, [1, 1, 9, 9], iscrowd=crowd)
    factors = repeat_factors(small_lvis.read(), np.array([1, 2]), 1.0)
    np.testing.assert_allclose(factors, [2**0.5, 1.0])


def test_an_image_without_objects_is_seen_once_an_epoch(small_lvis):
    small_lvis.add_object(small_lvis.add_image(), 0, [1, 1, 9, 9])
    small_lvis.add_image()
    np.testing.assert_allclose(repeat_factors(small_lvis.read(), np.arange(2), 2.0), [2.0, 1.0])


def test_an_epoch_holds_each_image_its_factor_rounded_up_or_down_and_right_in_the_mean():
    images = stream()
    counts = np.array([np.bincount(images.epoch(e), minlength=17)[10:] for e in range(2000)])
    factors = np.array([1.0, 1.5, 2.25, 1.0, 3.0, 1.1, 1.0])
    assert (counts >= np.floor(factors)).all() and (counts <= np.ceil(factors)).all()
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.04)
    together = np.corrcoef(counts[:, factors % 1 > 0].T)
    np.testing.assert_allclose(together, np.eye(3), atol=0.1)  # each image by itself


def test_the_stream_is_the_epochs_one_after_the_other():
    images = stream()
    expected = np.concatenate([images.epoch(e) for e in range(5)])
    assert list(itertools.islice(images.since(0), len(expected))) == expected.tolist()
    assert images.epoch(0).tolist() != images.epoch(1).tolist()


@pytest.mark.parametrize("position", [1, 9, 10, 11, 12, 40, 333])
def test_entering_the_stream_anywhere_gives_what_would_have_come(position):
    whole = list(itertools.islice(stream().since(0), 400))
    assert list(itertools.islice(stream().since(position), 400 - position)) == whole[position:]


def buckets(entries, wide, size):
    """Detectron2's grouping: a bucket of each orientation, handed over when it is full."""
    waiting = {True: [], False: []}
    for index in entries:
        waiting[wide[index]].append(index)
        if len(waiting[wide[index]]) == size:
            yield from waiting[wide[index]]
            waiting[wide[index]].clear()


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize(
    "wide", [{11, 12}, {16}, set(), set(range(17))], ids=["2 of 7", "1 of 7", "none", "all"]
)
def test_a_grouped_stream_is_the_stream_through_two_buckets_wherever_it_is_entered(wide, size):
    is_wide = np.array([index in wide for index in range(17)])
    expected = list(buckets(itertools.islice(stream().since(0), 3000), is_wide, size))[:1000]
    for position in (0, 1, 16, 333):
        grouped = GroupedStream(stream(), is_wide, size).since(position)
        assert list(itertools.islice(grouped, 1000 - position)) == expected[position:]


def test_the_stream_depends_on_the_seed():
    one, other = (list(itertools.islice(stream(seed).since(0), 50)) for seed in (1, 2))
    assert one != other


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_each_batch_and_miss_nothing(world_size):
    whole = list(StreamSampler(stream(), 16, 48))
    parts = [list(StreamSampler(stream(), 16, 48, rank, world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*parts)) == whole
    assert [len(part) for part in parts] == [32 // world_size] * world_size
    assert [len(StreamSampler(stream(), 16, 48, rank, world_size)) for rank in range(world_size)] == [
        len(part) for part in parts
    ]
    first_batch = {k for part in parts for k, _ in part[: 8 // world_size]}
    assert first_batch == set(range(16, 24))


def test_resuming_continues_the_sequence():
    whole = list(StreamSampler(stream(), 0, 60, 1, 2))
    assert list(StreamSampler(stream(), 40, 60, 1, 2)) == whole[20:]
