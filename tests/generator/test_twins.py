"""Twins of guided images: what is drawn of them, and that they change nothing else."""

import dataclasses
from collections.abc import Sequence
from unittest.mock import Mock

import numpy as np
import pytest

from exchange.feedback import write_feedback
from exchange.images import read_rgba
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.twins import read_twins, twins_record, write_twins
from generator.pipelines import PipelineSource
from generator.plan import PlannedImage, PromptBook, plan_round
from generator.production import Draw
from generator.sampling import SampledImage
from generator.twins import choose_twins, draw_twins
from tests.generator.test_generate import digests, fake_network, feedback, run

__all__ = ["fake_network"]
GUIDED = ("--st-rd", "1", "--round", "2", "GENERATOR.GUIDANCE_SCALE", "0.3")


@pytest.fixture
def layout(world, fake_network) -> RunLayout:
    layout = RunLayout(str(world.run))
    write_feedback(layout, feedback(0))
    return layout


def test_they_are_spread_over_the_round_and_no_more_than_its_images():
    categories = [{"id": i, "name": str(i)} for i in range(1, 11)]
    plan = plan_round(categories, np.full(10, 2), PromptBook(["a {}"]), run_seed=0, round_=1)
    assert [plan.index(image) for image in choose_twins(plan, 3)] == [0, 10, 19]
    assert choose_twins(plan, 100) == plan and choose_twins(plan, 0) == []


def test_their_criterion_is_that_of_the_finished_image(tmp_path):
    categories = [{"id": i, "name": str(i)} for i in (3, 7)]
    plan = plan_round(categories, np.ones(2, int), PromptBook(["a {}"]), run_seed=0, round_=1)
    grey = np.full((8, 8, 3), 128, np.uint8)
    values = {image.file: (0.5 + n, 0.25 + n) for n, image in enumerate(plan)}

    def begin(images: Sequence[PlannedImage]) -> Draw:
        return lambda batch: [SampledImage(grey, *values[image.file], 0) for image in batch]

    draw_twins(str(tmp_path / "twins.png"), plan, begin)
    twins, _ = read_twins(str(tmp_path / "twins.png"))
    assert (twins.files, twins.criterion) == ([image.file for image in plan], [0.25, 1.25])


@pytest.mark.bits
def test_a_twin_is_what_its_prompt_and_seed_give_without_guidance(world, layout, monkeypatch, tmp_path):
    whole = ("GENERATOR.BATCH_SIZE", "12", "GENERATOR.TWINS", "12")
    run(world, monkeypatch, *GUIDED, *whole)
    (manifest,) = read_round(layout, 1)
    twins, images = read_twins(layout.twins(1))
    assert twins.files == [record.file for record in manifest.instances]
    for value, record in zip(twins.criterion, manifest.instances, strict=True):
        assert value > 0 and value != record.criterion_after
    unguided = RunLayout(str(tmp_path / "unguided"))
    write_feedback(unguided, feedback(0))
    run(world, monkeypatch, *GUIDED[:-1], "0", *whole, "OUTPUT_DIR", unguided.root)
    for file, pixels in zip(twins.files, images, strict=True):
        assert np.array_equal(pixels, read_rgba(unguided.raw(file))[..., :3])
        assert not np.array_equal(pixels, read_rgba(layout.raw(file))[..., :3])
    assert twins_record(unguided.twins(1)) is None  # there, all images are what they would be


@pytest.mark.bits
def test_nothing_else_changes_and_any_number_of_shards_draws_the_same_twins(world, layout, monkeypatch):
    run(world, monkeypatch, *GUIDED)
    without, drawn = digests(world), []
    for shards in (["-1"], ["1", "0"]):
        pool = world.run / "pool"
        for path in [*(pool / "raw").glob("*.png"), *(pool / "manifests").iterdir()]:
            path.unlink()
        for shard in shards:
            assert twins_record(layout.twins(1)) is None  # the first shard draws them
            run(world, monkeypatch, *GUIDED, "--div", shard, "--num-div", "2", "GENERATOR.TWINS", "3")
        assert digests(world) == without
        drawn.append((world.run / "pictures/twins_rd01.png").read_bytes())
        (world.run / "pictures/twins_rd01.png").unlink()
    assert drawn[0] == drawn[1]


def test_they_are_drawn_once_and_again_where_they_are_gone_or_damaged(world, layout, monkeypatch):
    options = (*GUIDED, "GENERATOR.TWINS", "2")
    run(world, monkeypatch, *options)
    path = world.run / "pictures/twins_rd01.png"
    whole = path.read_bytes()
    twins, images = read_twins(str(path))
    others = dataclasses.replace(twins, files=["01_0001_0009.png", "01_0001_0008.png"])
    write_twins(str(path), others, images)
    of_others = path.read_bytes()
    write_twins(str(path), dataclasses.replace(twins, criterion=twins.criterion[:1]), images)
    assert twins_record(str(path)) is None
    for rest in (None, whole[:-9], of_others):
        path.unlink()
        if rest:
            path.write_bytes(rest)
        run(world, monkeypatch, *options)
        assert path.read_bytes() == whole
    monkeypatch.setattr(PipelineSource, "_load", lambda *_, **__: pytest.fail("a model was loaded"))
    run(world, monkeypatch, *options)


def test_one_network_guides_a_round_and_its_twins_and_their_prompts_are_encoded_together(
    world, layout, monkeypatch, fake_network
):
    encoders = Mock(side_effect=PipelineSource.load_encoders)
    monkeypatch.setattr(PipelineSource, "load_encoders", lambda source: encoders(source))
    shard = ("--div", "0", "--num-div", "12")  # has few of the prompts
    run(world, monkeypatch, *GUIDED, *shard, "GENERATOR.BATCH_SIZE", "1", "GENERATOR.TWINS", "3")
    assert len(fake_network) == encoders.call_count == 1
