"""A rank beside the pool as weights and as a filter."""

from types import SimpleNamespace

import numpy as np
import pytest

from detectron2_ext.paste import build
from detectron2_ext.paste.build import _weights, build_pool
from detectron2_ext.paste.pool import InstancePool
from exchange import files
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.pool_index import write_index
from exchange.pool_rank import write_rank
from tests.diSegmenter.conftest import layout, pool_instance  # noqa: F401

DATASET = SimpleNamespace(category_ids=np.array([3, 7]))
# of each round: category, value of its rank
ROUNDS = ([(3, 0.5), (3, -2.0), (7, 9.0), (3, 0.5)], [(7, 1.0), (3, np.nan), (3, 3.0), (7, 2.0), (7, -8.0)])


def pool_of(layout, *overrides: str) -> InstancePool:  # noqa: F811
    options = [
        "INPUT.USE_COPY_METHOD",
        "syn_copy",
        "INPUT.INST_POOL",
        "True",
        "INPUT.INST_POOL_PATH",
        layout.root,
    ]
    config = str(REPOSITORY / "tests/detectron2_ext/engine/empty.yaml")
    return build_pool(load_config(config, [*options, *overrides]), layout, 0, DATASET)


@pytest.fixture
def ranked(layout):  # noqa: F811
    for round_, rows in enumerate(ROUNDS):
        instances = [pool_instance(round_, category, n) for n, (category, _) in enumerate(rows)]
        write_index(layout, round_, [*instances, pool_instance(round_, 3, 99, reason="CLIP score")])
        names, values = [i.file for i in instances], np.array([value for _, value in rows])
        write_rank(layout, round_, "gradient", names[::-1], values[::-1], {})
    return layout


def test_as_a_weight_it_is_the_share_of_the_class_that_is_no_higher(ranked):
    weights = _weights("gradient", DATASET, pool_of(ranked))
    # threes: 0.5, -2, 0.5, unknown, 3; sevens: 9, 1, 2, -8
    np.testing.assert_allclose(weights, [3 / 4, 1 / 4, 4 / 4, 3 / 4, 2 / 4, 0.5, 4 / 4, 3 / 4, 1 / 4])


def test_of_two_pools_together_the_shares_are_those_among_all_instances(ranked):
    own_too = pool_of(ranked, "INPUT.INST_POOL_FEED", "True")  # of round 0, before both rounds of the path
    weights = _weights("gradient", DATASET, own_too)
    # threes: 0.5, -2, 0.5 twice, unknown, 3; sevens: 9 twice, 1, 2, -8
    threes_and_nines = [6 / 7, 2 / 7, 5 / 5, 6 / 7]
    expected = [*threes_and_nines, *threes_and_nines, 2 / 5, 0.5, 7 / 7, 3 / 5, 1 / 5]
    np.testing.assert_allclose(weights, expected)


@pytest.mark.parametrize(
    ("share", "kept"),
    [(1.0, range(9)), (0.75, [0, 2, 3, 4, 5, 6, 7]), (0.5, [0, 2, 5, 6, 7]), (0.01, [2, 5, 6])],
)
@pytest.mark.parametrize("crop", ["True", "False"])
def test_as_a_filter_it_leaves_the_highest_share_of_each_class_and_what_is_unknown(ranked, share, kept, crop):
    options = [
        "INPUT.INST_POOL_RANK",
        "gradient",
        "INPUT.INST_POOL_KEEP",
        str(share),
        "INPUT.INST_POOL_CROP",
        crop,
    ]
    names = [pool_of(ranked).instance(i) for i in range(9)]
    pool = pool_of(ranked, *options)
    assert [pool.instance(i) for i in range(len(pool))] == [names[i] for i in kept]


def test_the_share_is_of_what_nothing_else_leaves_out(ranked):
    names = [pool_of(ranked).instance(i) for i in range(9)]
    config = str(REPOSITORY / "tests/detectron2_ext/engine/empty.yaml")
    cfg = load_config(config, ["INPUT.INST_POOL_RANK", "gradient", "INPUT.INST_POOL_KEEP", "0.5"])
    refused = frozenset([names[6], names[2]])  # the highest of each class
    found = build._cutouts_of_run(cfg, ranked, [0, 1], refused)
    # of the threes 0.5, -2 and 0.5 and what is unknown, of the sevens 1, 2 and -8
    assert [found.instance(i) for i in range(len(found.category_ids))] == [names[i] for i in (0, 3, 4, 5, 7)]


def test_what_is_not_ranked_or_damaged_says_what_to_run(ranked):
    for options, message in (
        (
            ["INPUT.INST_POOL_RANK", "entropy"],
            "9 instances without a rank by entropy, .* rank .* --by entropy",
        ),
        (
            ["INPUT.INST_POOL_RANK", "size"],
            "INPUT.INST_POOL_RANK is 'size'.*gradient, entropy, clip, similarity",
        ),
        *(
            (
                ["INPUT.INST_POOL_RANK", "gradient", "INPUT.INST_POOL_KEEP", share],
                f"INST_POOL_KEEP is {share}",
            )
            for share in ("0.0", "1.01")
        ),
    ):
        with pytest.raises(UserError, match=message):
            pool_of(ranked, *options)
    files.remove(ranked.rank_done(1, "gradient"))  # killed before the end
    with pytest.raises(UserError, match="5 instances without a rank by gradient, such as 01_0007_0000.png"):
        _weights("gradient", DATASET, pool_of(ranked))
    files.write_bytes(ranked.rank(0, "gradient"), files.read_bytes(ranked.rank(0, "gradient"))[:-40])
    with pytest.raises(UserError, match=r"rd00\.gradient\.arrow is damaged .* mrca pool rank"):
        _weights("gradient", DATASET, pool_of(ranked))
    files.write_bytes(ranked.rank(0, "gradient"), files.read_bytes(ranked.pool_index(0)))  # of other columns
    with pytest.raises(
        UserError, match=r"rd00\.gradient\.arrow is a rank of another version: .* mrca pool rank"
    ):
        _weights("gradient", DATASET, pool_of(ranked))
