"""What the embedded models of LVIS-Digits learn, and how they are measured, with networks that only look on."""

import dataclasses
import json
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from exchange.feedback import write_feedback
from exchange.layout import RunLayout
from tests.exchange.test_formats import FEEDBACK
from tools import train_digits_models
from tools.digits import (
    pictures,
    prompts,
    samples,
    train_clip,
    train_foreground,
    train_judge,
    train_sd3,
    train_segmenter,
)
from tools.digits.optimise import optimising


def test_the_diffusion_model_learns_the_way_from_a_picture_s_latents_to_the_noise_in_them(monkeypatch):
    latents, calls = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0)), []
    slopes: list[float] = []
    texts = torch.arange(4.0).view(4, 1, 1).expand(4, 2, 3)

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(1))

        def forward(self, noisy, text, pooled, time, return_dict):
            calls.append((noisy, text[:, 0, 0], pooled[:, 0], time / 1000))
            slopes.append(self.slope.item())
            return (self.slope * noisy,)

    def watched_loss(velocity, target):
        calls[-1] += (target,)
        return F.mse_loss(velocity, target)

    monkeypatch.setattr(train_sd3, "encode", lambda vae, images: latents / 2 + 0.25)
    monkeypatch.setattr(train_sd3, "encode_prompts", lambda _, prompts: (texts, texts[:, 0]))
    monkeypatch.setattr(train_sd3, "F", SimpleNamespace(mse_loss=watched_loss, pad=F.pad))
    vae = SimpleNamespace(config=SimpleNamespace(shift_factor=0.25, scaling_factor=2.0))
    pipeline = SimpleNamespace(transformer=Watched(), vae=vae)
    train_sd3.train_transformer(pipeline, latents, ["a", "b", "c", "a", "b", "c"], steps=40, seed=0)
    asked = []
    for noisy, text, pooled, sigma, target in calls:
        clean = noisy - sigma[:, None, None, None] * target  # x = (1 - sigma) clean + sigma noise
        picture = (clean[:, None] - latents).abs().amax((2, 3, 4)).min(1)
        assert picture.values.max() < 1e-4 and torch.equal(text, pooled)
        asked.append(text - picture.indices % 3)
    asked = torch.cat(asked)
    assert (asked == 0).float().mean() > 0.7 and (
        asked > 0
    ).any()  # with its own prompt, or with the empty one
    average = slopes[1]
    for slope in [*slopes[2:], slopes[-1]]:  # the last step is hardly one
        average = 0.998 * average + 0.002 * slope
    assert pipeline.transformer.slope.item() == pytest.approx(average, rel=0.01)
    assert abs(average) < abs(slopes[-1]) / 2


def test_the_text_tower_learns_the_categories_codes_in_every_template():
    class Text(nn.Module):
        def forward(self, template):
            return SimpleNamespace(pooler_output=torch.eye(9)[3 * template : 3 * template + 3])

    torch.manual_seed(0)
    model, codes = nn.Module(), F.normalize(torch.randn(3, 4), dim=1)
    model.text_model, model.text_projection = Text(), nn.Linear(9, 4, bias=False)
    nn.init.normal_(model.text_projection.weight, std=0.01)
    train_clip.train_text(model, [{"template": number} for number in range(3)], codes, steps=150)
    learnt = F.normalize(model.text_projection.weight.T, dim=1)
    assert ((learnt.view(3, 3, 4) * codes).sum(2) > 0.8).all()


def test_the_clip_s_processor_gives_the_pixels_that_it_was_trained_on(monkeypatch):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (pictures.SIZE, pictures.SIZE, 3), np.uint8)
    monkeypatch.setattr(pictures, "with_masks", lambda *_, **__: [(picture, np.ones(picture.shape[:2]), 1)])
    trained_on, _ = train_clip.make_pictures({}, 1, rng)
    images = train_clip.build()[1].image_processor(images=[picture], return_tensors="pt")
    torch.testing.assert_close(images["pixel_values"], trained_on)


def test_prompts_for_a_white_or_no_background_have_a_white_one_and_the_others_a_colour():
    drawn = pictures.with_prompts(samples.split()["val"], 60, np.random.default_rng(0))
    white = {}
    for picture, prompt, category in drawn:
        template = prompt.replace(samples.category_name(category), "{}")
        white.setdefault(template, set()).add(bool((picture[0, 0] == 255).all()))
    for_white = ["{} in a white background", "{} isolated on white background", "{} without background"]
    for_white.append("a photo of {} in a white background")
    assert white == {template: {template in for_white} for template in prompts.TEMPLATES}


def test_a_foreground_model_is_measured_by_intersection_over_union(monkeypatch):
    coverages = torch.zeros(2, 1, 4, 4)
    coverages[0, 0, :2] = coverages[1, 0, 0] = 0.6
    drawn = Mock(return_value=(coverages, coverages))
    monkeypatch.setattr(train_foreground, "make_pictures", drawn)
    logits = torch.full((1, 4, 4), -9.0)  # nothing in eight bits
    logits[0, 0], logits[0, 1], logits[0, 2, :3] = 1, -2, 1  # a row, haze, and another part
    monkeypatch.setattr(samples, "split", lambda: {"val": "what no model was trained on"})
    measured = train_foreground.measure(lambda images: [images - 1, logits.expand(2, 1, 4, 4)])
    assert drawn.call_args.args[0] == "what no model was trained on"
    assert measured["mean_iou"] == pytest.approx((4 / 11 + 4 / 7) / 2)
    assert measured["iou_5_percent_quantile"] == pytest.approx(4 / 11 + 0.05 * (4 / 7 - 4 / 11))
    assert measured["mean_iou_as_released"] == pytest.approx((8 / 11 + 4 / 11) / 2)
    assert measured["mean_iou_cleaned"] == pytest.approx((4 / 8 + 4 / 4) / 2)


@pytest.mark.parametrize(("options", "largest"), [({"max_norm": 1.0}, 1), ({}, 99)])
def test_steps_are_adamw_s_with_clipped_gradients_and_the_rates_of_one_cycle(options, largest):
    weight = torch.nn.Parameter(torch.tensor([0.5, -2.0], dtype=torch.float64))
    slopes = torch.tensor([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0], [0.1, 0.0]], dtype=torch.float64)
    steps = optimising([weight], 4, 0.1, 0.02, "test", warm_up=0.5, **options)
    rates = [0.1 / 25, 0.1, (0.1 + 0.1 / 250_000) / 2, 0.1 / 250_000]  # up to the second step, down a cosine
    momenta = [0.95, 0.85, 0.9, 0.95]  # the other way round
    expected, mean, square = np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    learning = zip(steps, slopes, rates, momenta, strict=True)
    for number, (step, slope, rate, momentum) in enumerate(learning, start=1):
        step((weight * slope).sum())
        gradient = slope.numpy() / max(np.linalg.norm(slope) / largest, 1)
        mean = momentum * mean + (1 - momentum) * gradient
        square = 0.999 * square + 0.001 * gradient**2
        way = mean / (1 - momentum**number) / (np.sqrt(square / (1 - 0.999**number)) + 1e-8)
        expected = expected * (1 - rate * 0.02) - rate * way
        np.testing.assert_allclose(weight.detach(), expected, rtol=1e-6)


def test_a_recipe_gets_folder_seed_and_steps_and_what_it_measures_stands_beside_its_model(
    tmp_path, monkeypatch, call
):
    asked = []
    recipe = (lambda *given: asked.append(given) or {"auc": 0.5}, 2500)
    monkeypatch.setitem(train_digits_models._RECIPES, "clip", recipe)
    for options, seed in ((["--steps", 7], 0), (["--seed", 3], 3)):
        call(train_digits_models, "clip", "--out", tmp_path, *options)
        assert json.loads((tmp_path / "clip/quality.json").read_text()) == {"seed": seed, "auc": 0.5}
    assert asked == [(f"{tmp_path}/clip", 0, 7), (f"{tmp_path}/clip", 3, 2500)]


def test_the_segmenter_is_trained_by_stage_3_and_its_averaged_weights_go_out_in_half_precision(
    tmp_path, monkeypatch
):
    layout, commands = RunLayout(str(tmp_path / "run")), []
    path = str(tmp_path / "model.pth")
    scores = {"categories": [3, 7], "mask_ap": [10.0, 20.0], "ap_c": 5.0, "ap_f": 6.0}

    def run(command, env):
        commands.append(command[4:])
        write_feedback(layout, dataclasses.replace(FEEDBACK, checkpoint=path, **scores))
        return 0

    monkeypatch.setattr(train_segmenter.stopping, "run", run)
    feedback = train_segmenter.train(layout.root, 20, 3)
    assert commands == [["OUTPUT_DIR", layout.root, "SEED", "3", "SOLVER.MAX_ITER", "20"]]
    averaged = {"weight": torch.tensor([0.25]), "number": torch.tensor([70_000])}
    torch.save({"model": {"weight": torch.tensor([9.0])}, "model_ema": averaged}, path)
    train_segmenter.export(feedback, str(tmp_path))
    found = load_file(tmp_path / "model.safetensors")
    assert {name: value.item() for name, value in found.items()} == {"weight": 0.25, "number": 70_000}
    assert found["weight"].dtype == torch.float16
    measured = train_segmenter.measured(feedback)
    told = {"ap_c": 5.0, "ap_f": 6.0, "ap of blue zero": 10.0, "ap of red two": 20.0}
    assert measured.items() >= told.items() and measured["ap"] == feedback.mean_mask_ap


def test_what_starts_from_the_clip_finds_it_beside_itself_and_no_path_stays_in_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judge, "train", train := Mock(return_value=(Mock(), Mock())))
    monkeypatch.setattr(train_judge, "measure", Mock())
    train_digits_models.train_judge(str(tmp_path / "judge"), 3, 7)
    train.assert_called_once_with(str(tmp_path / "clip"), 7, 3)
    config = tmp_path / "vae/config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"_name_or_path": str(tmp_path), "layers": 3}))
    train_digits_models._forget_where_it_came_from(str(tmp_path))
    assert json.loads(config.read_text()) == {"layers": 3}


def test_the_clip_is_measured_by_the_right_category_against_all_others_on_unseen_digits(monkeypatch):
    cosines = torch.zeros(3, 30)
    cosines[0, 2], cosines[1, 0], cosines[1, 1], cosines[2, 29] = 0.9, 0.5, 0.6, 0.8
    drawn = Mock(return_value=(torch.zeros(3, 1), torch.tensor([3, 1, 30])))
    monkeypatch.setattr(train_clip, "make_pictures", drawn)
    monkeypatch.setattr(samples, "split", lambda: {"val": "what no model was trained on"})
    model = Mock(return_value=SimpleNamespace(image_embeds=cosines, text_embeds=torch.eye(30)))
    processor = Mock(tokenizer=Mock(return_value={}))
    assert train_clip.measure(model, processor) == pytest.approx(
        {
            "auc": 1 - 1 / (3 * 87),
            "accuracy": 2 / 3,
            "score_of_right_5_percent_quantile": 53.0,
            "score_of_wrong_95_percent_quantile": 0.0,
        }
    )
    assert drawn.call_args.args[0] == "what no model was trained on"
    assert processor.tokenizer.call_args.args[0][4] == "a photo of green one"


def test_the_diffusion_model_is_measured_by_what_a_classifier_sees_of_what_was_asked_for(monkeypatch):
    images = torch.zeros(2, 3, 4, 4)
    pipeline = Mock(side_effect=lambda asked, **_: SimpleNamespace(images=np.zeros((len(asked), 1, 1, 3))))
    pipeline.vae.decode.return_value.sample = images + 0.5  # of values from -1 to 1
    monkeypatch.setattr(train_sd3, "encode", Mock())
    monkeypatch.setattr(train_sd3, "DigitClassifier", lambda: lambda picture: (0, 0))  # a red zero, always
    told = train_sd3.measure(pipeline, images, count=60)
    expected = {"asked_digit_drawn": 1 / 10, "asked_ink_drawn": 1 / 3}
    assert told == pytest.approx(expected | {"autoencoder_mean_absolute_error": 0.25})
    assert [len(call.args[0]) for call in pipeline.call_args_list] == [50, 10]
    assert pipeline.call_args.args[0][4] == "a photo of red eight"
