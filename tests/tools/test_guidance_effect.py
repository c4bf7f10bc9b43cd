import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from exchange import files
from exchange.errors import UserError
from exchange.feedback import write_feedback
from exchange.layout import RunLayout
from generator.plan import PlannedImage
from tests.exchange.test_formats import FEEDBACK
from tools import guidance_effect
from tools.guidance_effect import clip_scores, compare


def test_differences_are_taken_within_pairs():
    effect = compare(np.array([0.1, 0.2, 0.6]), np.array([0.3, 0.5, 0.5]))
    assert effect["difference"] == pytest.approx(0.4 / 3)
    assert effect["standard_error"] == pytest.approx(np.std([0.2, 0.3, -0.1], ddof=1) / np.sqrt(3))
    assert effect["share_of_pairs_that_rose"] == pytest.approx(2 / 3)


def test_one_pair_has_no_deviation_and_is_refused(call):
    with pytest.raises(UserError, match="--pairs is 1: at least two are needed to compare"):
        call(guidance_effect, "--pairs", 1)


def test_each_image_is_scored_whole_and_with_its_own_category():
    def scorer(images, alphas, category_ids):
        assert all(alpha.shape == (4, 6) and (alpha == 255).all() for alpha in alphas)
        values = [
            int(image[0, 0, 0]) + 100 * category for image, category in zip(images, category_ids, strict=True)
        ]
        return np.array([[value, 9999.0] for value in values])

    images = np.tile(np.arange(5, dtype=np.uint8)[:, None, None, None], (1, 4, 6, 3))
    plan = [PlannedImage(f"{i}.png", 7 + i, i, 0, i, "a {}", "a cat") for i in range(5)]
    assert clip_scores(scorer, images, plan, batch_size=2).tolist() == [700, 801, 902, 1003, 1104]


def test_the_criterion_and_the_clip_score_of_guided_images_are_set_against_those_without(
    tmp_path, monkeypatch, call, capsys
):
    categories = [{"id": id_, "name": f"c{id_}"} for id_ in (3, 7)]
    annotations = {"images": [], "annotations": [], "categories": categories}
    files.write_json(str(tmp_path / "set.json"), annotations)
    data = {"TRAIN": ["set"], "CUSTOM": [["set", str(tmp_path / "set.json"), str(tmp_path)]]}
    generator = {"CRITERION": "entropy", "GUIDANCE_MODE": "decoder", "GUIDANCE_SCALE": 0.25}
    settings = {"DATASETS": data, "OUTPUT_DIR": str(tmp_path / "run")}
    files.write_json(str(tmp_path / "settings.yaml"), settings | {"GENERATOR": generator})
    write_feedback(RunLayout(str(tmp_path / "run")), dataclasses.replace(FEEDBACK, round=-1))

    def draw(plan, batch_size, guidance):
        levels = [204, 204, 255] if guidance else [51] * 3
        return [SimpleNamespace(pixels=np.full((4, 4, 3), level, np.uint8)) for level in levels]

    guidance = SimpleNamespace(uncertainty=lambda images, classes: images.mean((1, 2, 3)) + classes)
    sampler = SimpleNamespace(prepare=lambda plan: None, draw=draw)
    monkeypatch.setattr("generator.build.load_classifier", lambda *_: None)
    monkeypatch.setattr("generator.build.build_guidance", lambda *_: guidance)
    monkeypatch.setattr("generator.build.build_sampler", lambda *_, **__: sampler)
    monkeypatch.setattr(
        "diSegmenter.clip_score.load_clip_scorer",
        lambda *_: lambda images, alphas, ids: np.array([[25.0 - image[0, 0, 0] / 51] for image in images]),
    )
    monkeypatch.setattr("generator.pipelines.choose_device", lambda _: torch.device("cpu"))
    out = tmp_path / "effect.json"
    call(guidance_effect, "--config", tmp_path / "settings.yaml", "--pairs", "3", "--out", out)
    # Two of the three pairs are of the first class.
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "              unguided    guided    difference    standard error    share of pairs that rose",
        "----------  ----------  --------  ------------  ----------------  --------------------------",
        "entropy          0.533     1.200         0.667             0.067                       1.000",
        "clip_score      24.000    20.667        -3.333             0.333                       0.000",
    ]
    effect = json.loads(out.read_text())
    assert list(effect) == ["mode", "scale", "pairs", "entropy", "clip_score"]
    assert [effect["mode"], effect["scale"], effect["pairs"]] == ["decoder", 0.25, 3]
    means, of_pairs = {"unguided": 24, "guided": 62 / 3}, {"difference": -10 / 3, "standard_error": 1 / 3}
    assert effect["clip_score"] == pytest.approx(means | of_pairs | {"share_of_pairs_that_rose": 0})
    assert [effect["entropy"][which] for which in means] == pytest.approx([0.2 + 1 / 3, 1.2])
