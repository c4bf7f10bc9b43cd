"""Drawing from Python, with the embedded models."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from exchange import files
from exchange.config import load_config
from exchange.errors import UserError
from generator import painter
from generator.build import (
    build_guidance,
    build_prompt_book,
    build_sampler,
    chosen_models,
    load_classifier,
)
from generator.painter import Painter
from generator.plan import plan_round, share_among
from tests.digits_run import CATEGORIES, CONFIG, write_run
from tools import draw

FAST = ["GENERATOR.STEPS", "4", "GENERATOR.GUIDANCE_EVERY", "2", "GENERATOR.BATCH_SIZE", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return SimpleNamespace(folder=str(folder), checkpoint=write_run(folder))


@pytest.fixture(scope="module")
def guided(run):
    return Painter.from_run(run.folder, FAST).draw("red three", 3, seed=5)


@pytest.mark.bits
def test_images_are_those_that_stage_1_draws_guided_by_the_checkpoint(run, guided):
    cfg = load_config(CONFIG, FAST)
    feedback = SimpleNamespace(checkpoint=run.checkpoint, checkpoint_sha256=files.sha256(run.checkpoint))
    counts = np.array([3 * (category["name"] == "red three") for category in CATEGORIES])
    plan = plan_round(CATEGORIES, counts, build_prompt_book(cfg, []), run_seed=5, round_=0)
    plan = share_among(plan, chosen_models(cfg))
    device = torch.device("cpu")
    sampler = build_sampler(cfg, device, limit=2)
    sampler.prepare(plan)
    guidance = build_guidance(cfg, load_classifier(cfg, feedback, device))
    drawn = [image for batch in (plan[:2], plan[2:]) for image in sampler.sample(batch, guidance)]
    assert len(guided) == 3 and all(image.criterion_before is not None for image in drawn)
    for ours, theirs in zip(guided, drawn, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs.pixels)


def test_the_network_of_a_run_that_was_moved_is_the_one_in_its_folder(run):
    cfg = load_config(CONFIG, ["OUTPUT_DIR", run.folder])
    sha256, name = files.sha256(run.checkpoint), Path(run.checkpoint).name
    for digest in (sha256, "0" * 64):
        feedback = SimpleNamespace(checkpoint=f"/before/train/{name}", checkpoint_sha256=digest)
        with (
            nullcontext()
            if digest == sha256
            else pytest.raises(UserError, match=f"{run.folder}/train/{name}")
        ):
            load_classifier(cfg, feedback, torch.device("cpu"))


def test_the_command_writes_the_same_images_and_without_guidance_others(run, guided, tmp_path, call, capsys):
    with_last, of_file = ["--run", run.folder], ["--weights", run.checkpoint, "--unguided"]
    for out, options in (("guided", with_last), ("unguided", of_file)):
        call(draw, "red three", "--num", 3, "--seed", 5, "--out", tmp_path / out, *options, *FAST)
        assert capsys.readouterr().out == f"3 images: {tmp_path / out}\n"
    with pytest.raises(UserError, match="--num is 0: ask for at least one image"):
        call(draw, "red three", "--num", 0, "--out", tmp_path, *with_last)
    for number, image in enumerate(guided):
        same, other = (
            Image.open(tmp_path / out / f"red three {number:04}.png") for out in ("guided", "unguided")
        )
        np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
        assert (np.asarray(other) != np.asarray(image)).any()


def test_several_generators_share_the_images_and_a_decoder_of_its_own_guides(run, monkeypatch):
    seeds, asked, decoder = {}, [], torch.nn.Identity()

    def draw(plan, batch_size, guidance):
        seeds.update((image.seed, image.model) for image in plan)
        asked.append((batch_size, guidance.decoder, guidance.every))
        return [SimpleNamespace(pixels=np.zeros((4, 4, 3), np.uint8)) for _ in plan]

    sampler = SimpleNamespace(prepare=lambda plan: None, draw=draw)
    monkeypatch.setattr(painter, "build_sampler", lambda *_, limit: asked.append(limit) or sampler)
    monkeypatch.setattr(painter, "load_gradient_decoder", lambda *_: decoder)
    models = ["GENERATOR.MODEL", "", "GENERATOR.MODELS", "[['a', 1], ['b', 2]]"]
    drawing = Painter.from_checkpoint(run.checkpoint, [*FAST, *models])
    assert len(drawing.draw("red three", 6)) == 6
    assert asked == [2, (2, decoder, 2)]  # of FAST
    assert sorted(seeds.values()) == ["a"] * 2 + ["b"] * 4
    drawing.draw("red three", 6, seed=1)
    assert len(seeds) == 12  # others


def test_without_guidance_no_network_is_loaded(run, monkeypatch):
    monkeypatch.setattr(painter, "load_feedback_network", None)
    Painter.from_run(run.folder, ["GENERATOR.GUIDANCE_SCALE", "0"])
    Painter.from_checkpoint(run.checkpoint, guided=False)


def test_a_painter_draws_an_image_at_a_time_at_least(run):
    with pytest.raises(UserError, match=r"^GENERATOR\.BATCH_SIZE is 0: it is 1 or more$"):
        Painter.from_run(run.folder, ["GENERATOR.BATCH_SIZE", "0"], guided=False)


def test_a_category_that_the_checkpoint_does_not_know_is_refused(run):
    with pytest.raises(UserError, match="no category 'mauve three': its categories are red zero, green zero"):
        Painter.from_run(run.folder).draw("mauve three", 1)


def test_an_image_of_a_category_with_a_slash_of_either_kind_lies_in_the_folder(tmp_path, call, monkeypatch):
    stub = SimpleNamespace(draw=lambda name, *_: [Image.new("RGB", (4, 4))] * (name == "a/b\\c"))
    monkeypatch.setattr(Painter, "from_run", lambda *_, guided: stub)
    call(draw, "a/b\\c", "--run", "run", "--out", tmp_path)
    assert files.list_dir(str(tmp_path)) == ["a-b-c 0000.png"]
