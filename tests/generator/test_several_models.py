"""Several generators in one run: which image is whose, and that neither shards nor interruptions show."""

import gc
import shutil
import weakref
from collections import Counter
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import yaml

from exchange import files
from exchange.errors import UserError
from exchange.feedback import write_feedback
from exchange.images import read_rgba
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.twins import read_twins
from generator.build import chosen_models
from generator.pipelines import PipelineSource
from generator.plan import Model, PlannedImage, PromptBook, Sentences, plan_round, share_among
from generator.sampling import Samplers
from tests.generator.test_generate import digests, fake_network, feedback, run
from tests.generator.test_settings import settings
from tests.generator.tiny_pipelines import make_pipeline

__all__ = ["fake_network"]


def models(*shares):
    return [Model(name, share, "main") for name, share in zip("abcd", shares, strict=False)]


def plan_of(counts, round_=0, sentences=None):
    categories = [{"id": 7 * i + 1, "name": f"c{i}"} for i in range(len(counts))]
    return plan_round(categories, np.array(counts), PromptBook(["a {}"], "raw", sentences), 0, round_)


@pytest.mark.parametrize(
    ("shares", "whole"),
    [
        ((1,), [23]),
        ((1, 1), [12, 11]),  # the first of two that are alike
        ((0.7, 0.3), [16, 7]),
        ((5, 3, 1), [13, 8, 2]),  # 12.78, 7.67, 2.56: largest remainder
        ((1e-9, 1), [0, 23]),
    ],
)
def test_each_model_gets_its_share_of_a_round_exactly_and_of_each_category_nearly(shares, whole):
    plan = share_among(plan_of([1, 10, 0, 2, 10]), models(*shares))
    assert [image.file for image in plan] == [image.file for image in plan_of([1, 10, 0, 2, 10])]
    drawn = Counter(image.model for image in plan)
    assert [drawn[name] for name in "abcd"[: len(shares)]] == whole
    for category, count in Counter(image.category_id for image in plan).items():
        of_category = Counter(image.model for image in plan if image.category_id == category)
        for name, all_ in zip("abcd", whole, strict=False):
            assert abs(of_category[name] - count * all_ / len(plan)) < 2


def test_categories_stand_in_the_order_of_their_first_seeds_and_images_in_that_of_their_own():
    def image(category: int, seed: int) -> PlannedImage:
        return PlannedImage(f"{seed}.png", category, category, 1, seed, "a {}", "a cow")

    plan = [image(0, 5), image(0, 1), image(1, 3), image(1, 9), image(1, 8)]
    drawn = {image.seed: image.model for image in share_among(plan, models(1, 1))}
    assert [drawn[seed] for seed in (3, 8, 9, 1, 5)] == ["a", "b", "a", "b", "a"]
    # Of two that are equally far behind the first one is next
    drawn = {image.seed: image.model for image in share_among(plan[:4], models(1, 1))}
    assert [drawn[seed] for seed in (3, 9, 1, 5)] == ["a", "b", "a", "b"]


def test_what_several_models_drew_comes_in_the_order_that_was_asked_for():
    plan = share_among(plan_of([4, 4]), models(1, 1))
    assert [image.model for image in plan] != sorted(image.model for image in plan)
    fake = {"check": Mock(), "prepare": Mock(), "release": Mock()}
    fake["sample"] = lambda images, guidance: [image.file for image in images]
    samplers = Samplers({name: SimpleNamespace(**fake) for name in "ab"})
    samplers.prepare(plan)
    names = [image.file for image in plan]
    assert samplers.sample(plan) == names and samplers.draw(plan, 3) == names


def test_no_category_is_bound_to_a_model_and_no_sentence():
    of_rounds = [share_among(plan_of([1] * 40, round_), models(1, 1)) for round_ in range(12)]
    for images in zip(*of_rounds, strict=True):  # of each category
        assert {image.model for image in images} == {"a", "b"}
    sentences = Sentences({"c0": ["one c0", "another c0"]}, 0.5)
    pairs = Counter((i.model, i.prompt) for i in share_among(plan_of([400], 0, sentences), models(1, 1)))
    assert pairs["a", "a c0"] + pairs["b", "a c0"] == 200
    # two halves that know nothing of each other: 100 with a deviation of 5
    assert 75 < pairs["a", "a c0"] < 125


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd15"
    make_pipeline("sd15").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def two(world, sd15):
    """The small world with two generators, and sentences for half of the images."""
    prompts = world.config.parent / "prompts"
    prompts.mkdir()
    for name in ("aerosol_can", "bat_(animal)", "cow", "dog"):
        (prompts / f"{name}.txt").write_text(f"a red {name}\na small {name}\n")
    generator = world.settings["GENERATOR"]
    world.names = [generator.pop("MODEL"), sd15]
    generator |= {"MODELS": [[world.names[0], 0.6], [sd15, 0.4]], "PROMPT_FOLDER": str(prompts)}
    generator |= {"BATCH_SIZE": 2, "GUIDANCE_SCALE": 0.3, "GUIDANCE_EVERY": 1}
    world.config.write_text(yaml.safe_dump(world.settings))
    return world


@pytest.fixture(scope="module")
def drawn_once():
    return {}


@pytest.fixture
def whole(two, drawn_once, monkeypatch):
    """What one undisturbed process draws."""
    if not drawn_once:
        run(two, monkeypatch, "--round", "1")
        drawn_once.update(digests(two))
        shutil.rmtree(two.run)
    return drawn_once


def stop_at_image(number, monkeypatch):
    write, left = files.write_bytes, iter([True] * (number - 1))

    def write_some(path, data):
        if "pool/raw/" in path and not next(left, False):
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", write_some)


@pytest.mark.bits
def test_any_number_of_shards_draws_the_same_files_and_says_with_what(two, whole, monkeypatch):
    for shard in ("2", "0", "1"):
        layout = run(two, monkeypatch, "--round", "1", "--div", shard, "--num-div", "3")
    assert len(whole) == 12 and digests(two) == whole
    made = [record for manifest in read_round(layout, 0) for record in manifest.instances]
    assert [Counter(r.model for r in made)[name] for name in two.names] == [7, 5]
    assert Counter(r.prompt == r.template for r in made)[True] in range(
        4, 9
    )  # of each category half, rounded


@pytest.mark.bits
@pytest.mark.parametrize("number", [2, 9])  # while the first model draws, and the second
def test_stopped_at_an_image_it_ends_in_the_same_files(two, whole, monkeypatch, number):
    with monkeypatch.context() as patch:
        stop_at_image(number, patch)
        with pytest.raises(KeyboardInterrupt):
            run(two, patch, "--round", "1")
    assert len(digests(two)) == number - 1
    (manifest,) = read_round(RunLayout(str(two.run)), 0)
    assert not manifest.complete
    run(two, monkeypatch, "--round", "1")
    assert digests(two) == whole


@pytest.mark.bits
def test_every_model_is_guided_and_has_twins_that_change_nothing(two, monkeypatch, fake_network):
    layout = RunLayout(str(two.run))
    options = ("--st-rd", "1", "--round", "2", "GENERATOR.BATCH_SIZE", "4", "GENERATOR.PER_CLASS", "1")
    write_feedback(layout, feedback(0))
    run(two, monkeypatch, *options)
    guided = digests(two)
    shutil.rmtree(two.run / "pool")
    run(two, monkeypatch, *options, "GENERATOR.TWINS", "4")
    assert digests(two) == guided and len(fake_network) == 2
    (manifest,) = read_round(layout, 1)
    assert all(record.guided and record.criterion_after > 0 for record in manifest.instances)
    assert {record.model for record in manifest.instances} == set(two.names)
    twins, images = read_twins(layout.twins(1))
    shutil.rmtree(two.run / "pool")
    unguided = RunLayout(str(two.run.parent / "unguided"))
    write_feedback(unguided, feedback(0))
    run(two, monkeypatch, *options, "GENERATOR.GUIDANCE_SCALE", "0", "OUTPUT_DIR", unguided.root)
    for file, pixels in zip(twins.files, images, strict=True):
        assert np.array_equal(pixels, read_rgba(unguided.raw(file))[..., :3])


def test_one_model_is_loaded_at_a_time_and_each_once_in_a_round(two, monkeypatch):
    load, painters, alive = PipelineSource._load, [], weakref.WeakKeyDictionary()

    def watched(self, without):
        gc.collect()
        assert set(alive.values()) <= {self.name}
        pipeline = load(self, without)
        if pipeline.vae is not None:
            alive[pipeline.vae] = self.name
            painters.append(self.name)
        return pipeline

    monkeypatch.setattr(PipelineSource, "_load", watched)
    write_feedback(RunLayout(str(two.run)), feedback(0))
    run(two, monkeypatch, "--round", "2", "GENERATOR.GUIDANCE_SCALE", "0", "GENERATOR.PER_CLASS", "1")
    # the second round begins with the model that the first one ended with
    assert len(painters) == 3 and painters[0] == painters[2] != painters[1]


def test_a_model_that_is_not_there_is_told_before_the_first_one_draws(two, monkeypatch):
    listed = f"[[{two.names[0]}, 1], [no/such/model, 1]]"
    with pytest.raises(UserError, match="'no/such/model' is neither a folder nor a repository"):
        run(two, monkeypatch, "--round", "1", "GENERATOR.MODELS", listed)
    assert digests(two) == {} and not (two.run / "run.yaml").exists()


def test_models_are_one_or_several_with_a_revision_of_their_own_or_the_common_one():
    assert chosen_models(settings(MODEL="x", REVISION="v1")) == [Model("x", 1.0, "v1")]
    cfg = settings(MODELS=[["x", 2], ["y", 0.5, "v2"]], REVISION="v1")
    assert chosen_models(cfg) == [Model("x", 2.0, "v1"), Model("y", 0.5, "v2")]
    assert chosen_models(settings(MODEL="", MODELS=[["x", 1]])) == [Model("x", 1.0, "main")]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"MODEL": "x", "MODELS": [["y", 1]]},
            "GENERATOR.MODEL 'x' and GENERATOR.MODELS both say what draws",
        ),
        ({"MODELS": [["x", 1], ["y", 1], ["x", 2]]}, "GENERATOR.MODELS names 'x' twice"),
        *(
            ({"MODELS": [entry]}, "GENERATOR.MODELS holds .* takes entries")
            for entry in ("x", ["x"], ["x", 0], ["x", True], ["x", ".inf"], ["", 1], ["x", 1, 2], [1, 1])
        ),
        ({"MODELS": [["x", 1, "v1", "v2"]]}, "GENERATOR.MODELS holds"),
    ],
)
def test_models_that_cannot_be_meant_are_refused_in_a_sentence(changes, part):
    with pytest.raises(UserError, match=part):
        chosen_models(settings(**changes))
