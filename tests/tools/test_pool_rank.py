"""``mrca pool rank``: what it measures, what it does again, and what it asks for."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

from detectron2_ext.engine.build_selection import BOX_HEADS
from detectron2_ext.modeling import load_feedback_network
from detectron2_ext.modeling.described import read_described
from diSegmenter.build_similarity import build_similarity
from exchange import files
from exchange.catalog import read_training_set
from exchange.config import load_config
from exchange.errors import UserError
from exchange.images import decode_rgba, encode_png
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_index import PoolIndex, write_index
from exchange.pool_rank import read_rank
from tests.detectron2_ext.engine.small_run import write_config
from tests.digits_run import CONFIG, write_run, write_scenes
from tests.diSegmenter.conftest import clip_folder, pool_instance  # noqa: F401
from tools import pool, pool_rank

CPU = torch.device("cpu")
CLIP = ["clip_white", "clip_black"]


@pytest.fixture
def layout(tmp_path):
    """Two rounds of two instances of canvases of different sizes, the second of each without any score."""
    layout, rng = RunLayout(str(tmp_path / "run")), np.random.default_rng(0)
    for round_ in (0, 1):
        rows = []
        for category, scores in ((2, {CLIP[round_]: 5.0 + round_, "similarity": 0.25}), (5, {})):
            lacking = dict.fromkeys(CLIP)
            box = {"width": 62 + category, "height": 56, "bbox": [20, 10, 24, 30], "area": 720}
            rows.append(pool_instance(round_, category, 0, **box | lacking | scores))
            pixels = rng.integers(0, 256, (30, 24, 4), dtype=np.uint8)
            files.write_bytes(layout.pool(rows[-1].cutout), encode_png(pixels))
        write_index(layout, round_, rows)
    return layout


def call(monkeypatch, capsys, layout, *arguments):
    monkeypatch.setattr(sys, "argv", ["pool.py", "rank", layout.root, *map(str, arguments)])
    pool.main()
    return capsys.readouterr().out.splitlines()


def values(layout, kind):
    names = [f"0{round_}_000{category}_0000.png" for round_ in (0, 1) for category in (2, 5)]
    return read_rank(layout, [0, 1], kind, names)


def on_white(layout, name):
    cutout = PoolIndex(layout, [int(name[:2])])
    pixels = decode_rgba(cutout.read(0 if "_0002_" in name else 1), name).astype(np.float64)
    canvas = np.full((56, 64 if "_0002_" in name else 67, 3), 255.0)
    share = pixels[..., 3:] / 255
    canvas[10:40, 20:44] = np.rint(share * pixels[..., :3] + (1 - share) * 255)
    return canvas


def test_clip_is_the_larger_score_what_has_none_is_unknown_and_what_is_new_is_ranked(
    monkeypatch, capsys, layout
):
    lines = call(monkeypatch, capsys, layout, "--by", "clip")
    assert [line[: line.index(" (")] for line in lines] == [
        f"round {r}: ranked 1 of 2 instances" for r in (0, 1)
    ]
    np.testing.assert_array_equal(values(layout, "clip"), [5.0, np.nan, 6.0, np.nan])
    write_index(
        layout, 1, [*PoolIndex(layout, [1]), pool_instance(1, 5, 1, clip_white=-8.0, clip_black=-9.0)]
    )
    before, again = call(monkeypatch, capsys, layout, "--by", "clip")
    assert before == "round 0: was ranked before" and again.startswith("round 1: ranked 2 of 3")
    assert again.endswith("(5 %, median, 95 %: -7.300 -1.000 5.300)")
    write_index(layout, 2, [pool_instance(2, 5, 0, **dict.fromkeys(CLIP))])
    *_, last = call(monkeypatch, capsys, layout, "--by", "clip")
    assert last == "round 2: ranked 0 of 1 instances (5 %, median, 95 %: none)"


def test_what_a_measure_leaves_out_is_unknown_what_was_killed_goes_and_other_ranks_may_be_made_meanwhile(
    layout,
):
    leaves_out = Mock(return_value=[(1, 0.5)], made_from={})
    files.write_bytes(killed := layout.pool(f"rank/a.{files._kernel()}-01234567.tmp"), b"")
    with only_one(layout, "rank_clip"):
        (_, first), (_, second) = pool_rank.rank(layout, "entropy", leaves_out)
        with pytest.raises(UserError, match="is at 'rank_clip' already"):
            next(pool_rank.rank(layout, "clip", leaves_out))
    np.testing.assert_array_equal([first, second], [[np.nan, 0.5]] * 2)
    assert not files.exists(killed)


def test_entropy_is_that_of_the_segmenter_on_white_and_is_taken_again_only_where_it_is_missing(
    monkeypatch, capsys, layout, tmp_path
):
    checkpoint = write_run(tmp_path / "run")
    call(monkeypatch, capsys, layout, "--by", "entropy", "--device", "cpu")
    network = load_feedback_network(load_config(CONFIG), checkpoint)
    expected = []
    for name in ("00_0002_0000.png", "00_0005_0000.png", "01_0002_0000.png", "01_0005_0000.png"):
        image = torch.from_numpy(on_white(layout, name) / 255).permute(2, 0, 1)[None].float()
        p = network(image)[0].double().softmax(0)
        expected.append(float(-(p * p.log()).sum()))
    np.testing.assert_allclose(values(layout, "entropy"), expected, rtol=1e-3, atol=1e-6)
    assert call(monkeypatch, capsys, layout, "--by", "entropy") == [
        f"round {r}: was ranked before" for r in (0, 1)
    ]
    files.remove(layout.rank_done(1, "entropy"))
    before, again = call(monkeypatch, capsys, layout, "--by", "entropy")
    assert before == "round 0: was ranked before" and again.startswith("round 1: ranked 2 of 2")
    files.remove(layout.rank_done(1, "entropy"))
    cutout = layout.pool(PoolIndex(layout, [1])[1].cutout)
    whole = files.read_bytes(cutout)
    files.write_bytes(cutout, whole[:99])
    with pytest.raises(UserError, match="mrca pool verify names everything that is damaged"):
        call(monkeypatch, capsys, layout, "--by", "entropy")
    files.write_bytes(cutout, whole)
    assert capsys.readouterr().out == "round 0: was ranked before\n"
    shutil.move(checkpoint, tmp_path / "mine.pth")
    lines = call(monkeypatch, capsys, layout, "--by", "entropy", "--checkpoint", tmp_path / "mine.pth")
    assert [line[: line.index(" (")] for line in lines] == [
        f"round {r}: ranked 2 of 2 instances" for r in (0, 1)
    ]


def test_a_round_without_similarities_is_refused_where_nothing_says_what_is_to_compare(
    monkeypatch, capsys, layout
):
    unknown = [dataclasses.replace(row, similarity=None) for row in PoolIndex(layout, [0])]
    write_index(layout, 0, unknown)
    with pytest.raises(UserError, match="round 0 of .* has no similarities: give --config"):
        call(monkeypatch, capsys, layout, "--by", "similarity")


@pytest.mark.parametrize("cut_off", [np.s_[:50], np.s_[:, :50]])
def test_similarity_comes_from_the_index_and_is_measured_where_it_is_unknown(
    monkeypatch,
    capsys,
    layout,
    tmp_path,
    clip_folder,  # noqa: F811
    cut_off,
):
    call(monkeypatch, capsys, layout, "--by", "similarity")
    np.testing.assert_array_equal(values(layout, "similarity"), [0.25, np.nan, 0.25, np.nan])
    config = write_config(tmp_path)
    with pytest.raises(UserError, match=r"config\.yaml has no SEGMENTER.SIMILARITY_MODEL"):
        call(monkeypatch, capsys, layout, "--by", "similarity", "--config", config)
    node = {"SIMILARITY_MODEL": clip_folder, "SIMILARITY_PADDING": 2}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"SEGMENTER": node}))
    around = np.random.default_rng(1).integers(0, 256, (56, 67, 3), dtype=np.uint8)
    files.write_bytes(layout.raw("00_0005_0000.png"), encode_png(around))
    files.write_bytes(
        layout.raw("01_0005_0000.png"), encode_png(around[cut_off])
    )  # another one than was cut out
    call(monkeypatch, capsys, layout, "--by", "similarity", "--config", config)
    cfg = load_config(str(config))
    made_from = files.read_json(layout.rank_done(1, "similarity"))  # whatever it depends on
    told = {"SIMILARITY_PADDING": 2, "TRAIN": cfg.DATASETS.TRAIN, "SEED": cfg.SEED}
    assert told.items() <= made_from.items()
    compare = build_similarity(cfg, RunLayout(str(tmp_path / "other")), *read_training_set(cfg), CPU)
    images = [around, on_white(layout, "01_0005_0000.png").astype(np.uint8)]
    alphas = []
    for r in (0, 1):
        alphas.append(np.zeros((56, 67), np.uint8))
        alphas[-1][10:40, 20:44] = decode_rgba(PoolIndex(layout, [r]).read(1), "")[..., 3]
    first, second = compare(images, alphas, [5, 5])
    np.testing.assert_allclose(values(layout, "similarity"), [0.25, first, 0.25, second], atol=1e-6)


def test_a_similarity_of_exactly_0_is_known_and_that_to_a_class_without_real_objects_is_not(
    monkeypatch, capsys, layout, tmp_path
):
    config = write_config(tmp_path)
    node = {"SEGMENTER": {"SIMILARITY_MODEL": "clip"}}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | node))
    answers = iter([[0.0], [None]])
    monkeypatch.setattr(pool_rank, "build_similarity", lambda *_: lambda *_: next(answers))
    call(monkeypatch, capsys, layout, "--by", "similarity", "--config", config)
    np.testing.assert_array_equal(values(layout, "similarity"), [0.25, 0.0, 0.25, np.nan])


def test_gradient_ranks_by_the_last_checkpoint_and_its_training_set_as_far_as_that_is_whole(
    monkeypatch, capsys, caplog, layout, tmp_path
):
    with pytest.raises(UserError, match="holds no checkpoint"):
        call(monkeypatch, capsys, layout, "--by", "gradient")
    write_scenes(tmp_path / "scenes", 6)  # of the classes 1, 8, 15, 22, 29 and 6
    for round_ in (0, 1):
        first, second = PoolIndex(layout, [round_])
        write_index(layout, round_, [dataclasses.replace(first, category_id=8), second])
    custom = [["scenes", str(tmp_path / "scenes" / "scenes.json"), str(tmp_path / "scenes")]]
    checkpoint = write_run(tmp_path / "run", "DATASETS.TRAIN", "[scenes]", "DATASETS.CUSTOM", str(custom))
    with pytest.raises(UserError, match="--images 0: gradient looks at one image of a class at least"):
        call(monkeypatch, capsys, layout, "--by", "gradient", "--images", 0)
    lines = call(monkeypatch, capsys, layout, "--by", "gradient", "--images", 1, "--device", "cpu")
    found, made_from = values(layout, "gradient"), files.read_json(layout.rank_done(0, "gradient"))
    assert (made_from["images"], made_from["layers"]) == (1, list(BOX_HEADS))
    assert made_from["sha256"] == files.sha256(checkpoint)
    assert made_from["checkpoint"] == Path(checkpoint).name  # wherever the run is moved to
    others = read_described(checkpoint, ["MODEL.ACTIVE_GRAD_LAYERS", "['cls_score']"])
    assert pool_rank.ByGradient(others, CPU, 2).made_from["layers"] == ["cls_score"]
    known = np.array([True, False, True, False])
    assert (np.isnan(found) != known).all() and (np.abs(found[known]) <= 1).all()
    assert found[0] != found[2]  # each round's are its own instances'
    assert lines[0].startswith("round 0: ranked 1 of 2")
    for path in (tmp_path / "scenes").glob("*.png"):
        path.write_bytes(b"no image")
    lines = call(monkeypatch, capsys, layout, "--by", "gradient", "--images", 2, "--device", "cpu")
    assert lines[0].startswith("round 0: ranked 0 of 2")
    assert re.search(r"round 0: \d+ files were not used: .*\.png: not an image, or damaged", caplog.text)
    path = tmp_path / "scenes" / "scenes.json"
    path.write_text(path.read_text().replace('"id": 30', '"id": 31').replace('"id":30', '"id":31'))
    with pytest.raises(UserError, match="was trained on other categories than DATASETS.TRAIN has"):
        call(monkeypatch, capsys, layout, "--by", "gradient")
