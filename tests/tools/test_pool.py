"""The command line over pools: which rows it counts, where it looks, and what it refuses."""

import numpy as np
import pytest

from diSegmenter.pool import annotation_file
from exchange import files
from exchange.errors import UserError
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance, write_index
from tests.diSegmenter.conftest import CATEGORIES, pool_instance
from tools import pool


@pytest.fixture
def layout(tmp_path):
    """Round 0 keeps instances with CLIP scores 20 to 40 and drops three; round 1, of other names, is under way."""
    layout, category = RunLayout(str(tmp_path / "run")), CATEGORIES[0]["id"]
    kept = [
        pool_instance(0, category, n, clip_white=20.0 + n, clip_black=10.0 if n % 2 else None)
        for n in range(21)
    ]
    write_index(layout, 0, kept + [pool_instance(0, category, n, reason="CLIP score") for n in (21, 22, 23)])
    write_index(layout, 1, [])
    for round_, name in ((0, "former"), (1, "kite")):
        records = [{"id": one["id"], "name": f"{name} {one['id']}"} for one in CATEGORIES]
        content = {"images": [], "annotations": [], "categories": records}
        files.write_json(layout.annotations(round_), content)
    files.write_bytes(layout.raw(kept[0].file), b"")
    return layout


def test_stats_count_kept_and_dropped_and_name_the_classes_as_the_newest_round_does(layout, call, capsys):
    call(pool, "stats", layout.root, "--per-class")
    _, first, second, *classes = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert first == ["0", "24", "21", "21.0", "30.0", "39.0;", "CLIP", "score", "3"]
    assert second == ["1", "0", "0", "none"]
    names = [["kite", str(one["id"])] for one in CATEGORIES]
    assert classes == [["21", *names[0]], *(["0", *name] for name in names[1:])]


def test_stats_make_no_object_of_an_instance(layout, monkeypatch, capsys, call):
    monkeypatch.delattr(PoolInstance, "__init__")
    call(pool, "stats", layout.root, "--per-class")
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(CATEGORIES)
    with pytest.raises(TypeError):
        list(PoolIndex(layout, [0]))


def test_prune_asks_what_to_prune_and_leaves_a_round_that_is_under_way(layout, call, capsys):
    with pytest.raises(UserError, match="at least one of --originals, --dropped, --duplicates"):
        call(pool, "prune", layout.root)
    call(pool, "prune", layout.root, "--originals")
    assert capsys.readouterr().out == "" and files.exists(
        layout.raw(layout.instance_name(0, CATEGORIES[0]["id"], 0))
    )


def test_relative_paths_of_a_pool_that_is_brought_in_start_beside_its_list(layout, tmp_path, call, capsys):
    files.write_bytes(str(tmp_path / "theirs/a.png"), encode_png(np.full((9, 9, 4), 255, np.uint8)))
    files.write_json(str(tmp_path / "theirs/pools.json"), {"0": ["*a.png"]})
    call(pool, "import", layout.root, tmp_path / "theirs/pools.json", "--from", "xpaste")
    assert capsys.readouterr().out.startswith("imported 1 instances")


def test_a_pool_is_not_merged_with_itself_or_with_nothing(layout, call):
    for run, other in (
        (layout.root, layout.root + "/"),
        (layout.root + "/", layout.root),
        (layout.root, "/x"),
    ):
        with pytest.raises(UserError, match="holds no other pool"):
            call(pool, "merge", run, other)


def test_an_exported_annotation_file_is_what_a_round_of_a_small_pool_writes_and_holds_no_pool_in_memory(
    layout, tmp_path, monkeypatch, call
):
    categories = [{"id": 9, "name": "moth"}, *CATEGORIES]
    files.write_json(layout.pool_categories(), {"images": [], "annotations": [], "categories": categories})
    opened = []

    class Opened(PoolIndex):
        def __init__(self, layout, rounds):
            opened.append(list(rounds))
            super().__init__(layout, rounds)

    monkeypatch.setattr(annotation_file, "PoolIndex", Opened)
    write_index(layout, 1, [pool_instance(1, CATEGORIES[1]["id"], 0)])
    call(pool, "export", layout.root, tmp_path / "out", "--to", "annotations")
    content = files.read_json(str(tmp_path / "out/annotations.json"))
    assert [image["id"] for image in content["images"]] == list(range(1, 23))
    assert [one["round"] for one in content["annotations"]] == [0] * 21 + [1]
    assert content["annotations"][0]["segmentation"] == [[3, 4, 12, 4, 12, 14]]
    assert [one["name"] for one in content["categories"]] == ["red disc", "blue_disc", "moth"]
    assert opened == [[0], [1]] * 2  # never all rounds at once
    assert files.list_dir(str(tmp_path / "out")) == ["annotations.json"]
