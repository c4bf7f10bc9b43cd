"""The command line over pools: which rows it counts, where it looks, and what it refuses."""

import csv
import io
import re

import numpy as np
import pytest
import torch
import yaml

from diSegmenter.cut_out import on_white_square
from diSegmenter.pool import annotation_file
from diSegmenter.pool.diversity import mean_distance, vendi_score
from diSegmenter.similarity import load_image_encoder
from exchange import files, pool_features
from exchange.errors import UserError
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, PoolInstance, write_index
from tests.diSegmenter.conftest import CATEGORIES, clip_folder, pool_instance  # noqa: F401
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


def rows_of(text: str) -> list[list[str]]:
    """Lines of a table as its cells."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_stats_tell_shares_and_scores_and_name_the_classes_as_the_newest_round_does(layout, call, capsys):
    call(pool, "stats", layout.root, "--per-class")
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "  round    made    kept    CLIP 5, 50, 95 %    dropped: CLIP score",
        "      0      24      21      21.0 30.0 39.0                 12.5 %",
        "      1       0       0",
        "    all      24      21      21.0 30.0 39.0                 12.5 %",
        f"diversity is not known from round 0 on: mrca pool measure {layout.root} measures it",
        "class      made    kept    CLIP 5, 50, 95 %    dropped: CLIP score",
        "kite 3       24      21      21.0 30.0 39.0                 12.5 %",
        "kite 7        0       0",
    ]


def test_stats_make_no_object_of_an_instance(layout, monkeypatch, capsys, call):
    monkeypatch.delattr(PoolInstance, "__init__")
    call(pool, "stats", layout.root, "--per-class")
    assert len(capsys.readouterr().out.splitlines()) == 6 + len(CATEGORIES)
    with pytest.raises(TypeError):
        list(PoolIndex(layout, [0]))


def test_a_pool_that_is_measured_by_the_run_s_encoder_has_its_diversity_in_stats(
    layout,
    call,
    capsys,
    clip_folder,  # noqa: F811
):
    with pytest.raises(UserError, match=r"run has no run\.yaml that says which encoder: give --config"):
        call(pool, "measure", layout.root)
    settings = {"SEGMENTER.CLIP_MODEL": clip_folder, "SEGMENTER.CLIP_REVISION": "main"}
    content = yaml.safe_dump({"settings": settings, "versions": {}})
    files.write_bytes(layout.settings_file, content.encode())
    rng, pixels = np.random.default_rng(0), {}
    for row, instance in enumerate(PoolIndex(layout, [0])):
        pixels[row] = pixels[1] if row == 4 else rng.integers(0, 256, (11, 10, 4), np.uint8)
        files.write_bytes(layout.pool(instance.cutout), encode_png(pixels[row]))
    for now in (21, 0):
        call(pool, "measure", layout.root, "--device", "cpu")
        assert capsys.readouterr().out.splitlines() == [
            f"round 0: measured {now} of 21 instances",
            "round 1: measured 0 of 0 instances",
        ]
    features = load_image_encoder(clip_folder, "main", torch.device("cpu"))(
        [on_white_square(pixels[row]) for row in range(21)]
    )
    call(pool, "stats", layout.root, "--near", "0.999999")
    head, first, second, *_ = rows_of(capsys.readouterr().out)
    assert head[4:8] == ["distance", "Vendi", "Vendi of pool", "near-duplicates"]
    vendi = f"{vendi_score(features):.1f}"
    assert first[4:8] == [f"{mean_distance(features):.3f}", vendi, vendi, "4.8 %"]
    assert second == ["1", "0", "0", vendi]  # which adds nothing
    assert pool.build_parser().parse_args(["stats", layout.root]).near == 0.99
    call(pool, "stats", layout.root, "--near", "1")
    for near in ("0.0", "1.5"):
        with pytest.raises(UserError, match=f"--near {near}: a cosine"):
            call(pool, "stats", layout.root, "--near", near)


def test_another_encoder_than_the_run_s_is_named_by_a_configuration(layout, call, tmp_path, clip_folder):  # noqa: F811
    write_index(layout, 0, [pool_instance(0, CATEGORIES[0]["id"], 0)])
    cutout = encode_png(np.full((11, 10, 4), 200, np.uint8))
    files.write_bytes(layout.pool(PoolIndex(layout, [0])[0].cutout), cutout)
    for key, model in (("CLIP_MODEL", clip_folder), ("SIMILARITY_MODEL", f"{clip_folder}/.")):
        config = tmp_path / f"{key}.yaml"
        config.write_text(yaml.safe_dump({"SEGMENTER": {"CLIP_MODEL": "no such model", key: model}}))
        files.write_json(layout.settings_file, {"settings": {}, "versions": {}})
        call(pool, "measure", layout.root, "--config", config, "--device", "cpu")
        assert files.read_json(layout.features_made_from()) == {"model": model, "revision": "main"}
    with pytest.raises(UserError, match="no device 'abacus'"):
        call(pool, "measure", layout.root, "--config", config, "--device", "abacus")


def test_the_table_as_csv_has_numbers_of_every_class_and_round(layout, call, tmp_path, capsys):
    category = CATEGORIES[0]["id"]
    rows = [pool_instance(1, category, n, similarity=0.5, reason="similarity" if n else "") for n in range(3)]
    write_index(layout, 1, rows)
    pool_features.begin(layout, {"model": "a"})
    for round_, vectors in ((0, np.eye(22)[:21]), (1, np.eye(22)[:1])):
        names = PoolIndex(layout, [round_]).column("file").tolist()
        pool_features.add_features(layout, round_, names, vectors)
    path = tmp_path / "quality.csv"
    call(pool, "stats", layout.root, "--csv", path, "--per-class")
    told = rows_of(capsys.readouterr().out)
    assert told[0][4] == "similarity" and told[5][:3] == [f"kite {category}", "27", "22"]
    found = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [(row["round"], row["id"]) for row in found] == [
        (str(round_), str(one["id"])) for round_ in (0, 1) for one in CATEGORIES
    ]
    first, second = found[0], found[len(CATEGORIES)]
    told = {"class": f"kite {category}", "made": "24", "kept": "21", "dropped: CLIP score": "3"}
    told |= {"dropped: similarity": "0", "similarity, median": "", "CLIP score, median": "30.0"}
    told |= {"CLIP score, 5 %": "21.0", "CLIP score, 95 %": "39.0", "distance": "1.0", "near-duplicates": "0"}
    assert told.items() <= first.items()
    assert float(first["Vendi"]) == pytest.approx(21) == float(first["Vendi of pool"])
    told = {"made": "3", "kept": "1", "dropped: similarity": "2", "similarity, median": "0.5"}
    assert (told | {"distance": "", "near-duplicates": "1"}).items() <= second.items()
    assert float(second["Vendi"]) == pytest.approx(1) and float(second["Vendi of pool"]) > 20
    lone = found[1]
    assert (lone["made"], lone["CLIP score, median"], lone["Vendi"]) == ("0", "", "")
    write_index(layout, 3, [])
    call(pool, "stats", layout.root, "--csv", path)
    assert [row[0] for row in rows_of(capsys.readouterr().out)[:5]] == ["round", "0", "1", "3", "all"]
    rounds = [row["round"] for row in csv.DictReader(io.StringIO(path.read_text()))]
    assert rounds == [str(round_) for round_ in (0, 1, 3) for _ in CATEGORIES]


def test_the_similarity_of_a_round_is_the_median_and_as_csv_its_quantiles_too(layout, call, tmp_path, capsys):
    values, category, path = (0.75, 0.5, 0.0), CATEGORIES[0]["id"], tmp_path / "quality.csv"
    write_index(layout, 1, [pool_instance(1, category, n, similarity=v) for n, v in enumerate(values)])
    call(pool, "stats", layout.root, "--csv", path)
    head, _, second, *_ = rows_of(capsys.readouterr().out)
    assert (head[4], second[4]) == ("similarity", "0.500")
    row = list(csv.DictReader(io.StringIO(path.read_text())))[len(CATEGORIES)]
    told = [float(row[f"similarity, {which}"]) for which in ("5 %", "median", "95 %")]
    assert told == pytest.approx([0.05, 0.5, 0.725])


def test_instances_that_are_all_alike_have_a_distance_of_0_and_count_as_one(layout, call, capsys):
    pool_features.begin(layout, {"model": "a"})
    names = PoolIndex(layout, [0]).column("file").tolist()
    pool_features.add_features(layout, 0, names, np.eye(2)[[0] * 21])
    call(pool, "stats", layout.root)
    head, first, *_ = rows_of(capsys.readouterr().out)
    told = dict(zip(head, first, strict=True))
    assert (told["distance"], told["Vendi"], told["near-duplicates"]) == ("0.000", "1.0", "95.2 %")


def test_that_nothing_at_all_was_kept_is_told(layout, call, capsys):
    for round_ in (0, 1):
        write_index(layout, round_, [pool_instance(round_, CATEGORIES[0]["id"], 0, reason="too small")])
    call(pool, "stats", layout.root)
    head, *rows = rows_of(capsys.readouterr().out)
    assert head[:3] == ["round", "made", "kept"]
    counts = [["0", "1", "0"], ["1", "1", "0"], ["all", "2", "0"]]
    assert rows[:3] == [[*counted, "100.0 %"] for counted in counts]


def test_prune_asks_what_to_prune_and_leaves_a_round_that_is_under_way(layout, call, capsys):
    with pytest.raises(UserError, match="at least one of --originals, --dropped, --duplicates"):
        call(pool, "prune", layout.root)
    call(pool, "prune", layout.root, "--originals")
    raw = layout.raw(layout.instance_name(0, CATEGORIES[0]["id"], 0))
    assert capsys.readouterr().out == "" and files.exists(raw)
    with pytest.raises(UserError, match="run has 24 problems: each line above says what to do"):
        call(pool, "verify", layout.root)
    assert len(capsys.readouterr().out.splitlines()) == 24


def test_relative_paths_of_a_pool_that_is_brought_in_start_beside_its_list(layout, tmp_path, call, capsys):
    files.write_bytes(str(tmp_path / "theirs/a.png"), encode_png(np.full((9, 9, 4), 255, np.uint8)))
    files.write_json(str(tmp_path / "theirs/pools.json"), {"0": ["*a.png"]})
    call(pool, "import", layout.root, tmp_path / "theirs/pools.json", "--from", "xpaste")
    assert capsys.readouterr().out == f"imported 1 instances into {layout.root}, left out 0\n"
    assert PoolIndex(layout, [2])[0].model == f"xpaste:{tmp_path}/theirs/pools.json"  # tells where it is from
    call(pool, "import", layout.root, tmp_path / "theirs/pools.json", "--from", "xpaste")
    told = f"imported 0 instances into {layout.root}, left out 0, there already 1\n"
    assert capsys.readouterr().out == told


def test_the_classes_of_x_paste_s_list_are_places_among_the_ids_whatever_the_names(
    layout, tmp_path, call, capsys
):
    files.write_bytes(str(tmp_path / "theirs/a.png"), encode_png(np.full((9, 9, 4), 255, np.uint8)))
    files.write_json(str(tmp_path / "theirs/pools.json"), {"2": ["*a.png", "*gone.png"]})
    categories = [{"id": id_, "name": name} for id_, name in ((7, "crane"), (5, "kite"), (3, "crane"))]
    files.write_json(str(tmp_path / "a.json"), {"images": [], "annotations": [], "categories": categories})
    theirs, new = tmp_path / "theirs/pools.json", RunLayout(str(tmp_path / "new"))
    call(pool, "import", new.root, theirs, "--from", "xpaste", "--annotations", tmp_path / "a.json")
    assert PoolIndex(new, [0]).category_ids.tolist() == [7]
    imported, left_out = capsys.readouterr().out.splitlines()
    assert imported == f"imported 1 instances into {new.root}, left out 1"
    assert left_out.startswith(f"  there is no file {tmp_path}/theirs/gone.png: ")
    call(pool, "prune", new.root, "--duplicates")
    assert capsys.readouterr().out == "dropped 0 duplicates\n"
    for form, written in (
        ("folders", ["LVIS_instance_pools.json", "images/crane/00_0007_0000.png"]),
        ("coco", ["annotations.json", "images/00_0007_0000.png"]),
    ):
        out = tmp_path / form
        call(pool, "export", new.root, out, "--to", form)
        assert capsys.readouterr().out == f"exported to {out}\n"
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == written


def test_a_pool_is_not_merged_with_itself_or_with_nothing(layout, call):
    for run, other in (
        (layout.root, layout.root + "/"),
        (layout.root + "/", layout.root),
        (layout.root, "/x"),
    ):
        with pytest.raises(UserError, match="holds no other pool"):
            call(pool, "merge", run, other)


def test_a_pool_that_says_nothing_of_its_categories_asks_for_them(layout, call):
    for round_ in (0, 1):
        files.remove(layout.annotations(round_))
    with pytest.raises(UserError, match="does not say which categories there are: give --annotations FILE"):
        call(pool, "stats", layout.root, "--per-class")


def test_nothing_is_merged_where_one_of_several_pools_is_none(layout, call, tmp_path):
    with pytest.raises(UserError, match="/x holds no other pool"):
        call(pool, "merge", tmp_path / "merged", layout.root, "/x")
    assert not (tmp_path / "merged").exists()


def test_a_merged_pool_has_the_categories_that_are_given(layout, tmp_path, call, capsys):
    write_index(layout, 0, [])
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "crane"}]}
    files.write_json(str(tmp_path / "a.json"), content)
    for given, names in (((), {"kite"}), (("--annotations", tmp_path / "a.json"), {"crane"})):
        merged = RunLayout(str(tmp_path / f"merged{len(given)}"))
        call(pool, "merge", merged.root, layout.root, layout.root, *given)
        assert capsys.readouterr().out == f"copied 0 instances of {layout.root} into {merged.root}\n" * 2
        found = files.read_json(merged.pool_categories())["categories"]
        assert {one["name"].split()[0] for one in found} == names


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
