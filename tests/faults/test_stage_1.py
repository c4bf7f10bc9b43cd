"""Stage 1 killed while it writes: a later call ends in the pool of an undisturbed run."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from exchange import files
from exchange.feedback import write_feedback
from exchange.layout import RunLayout
from exchange.manifest import Manifest, is_complete, read_round
from tests.exchange.test_formats import FEEDBACK
from tests.faults.kills import KILLS, kill_repeatedly
from tests.faults.processes import draw

FOUR = {"categories": [1, 2, 5, 9], "box_ap": [9.0] * 4, "mask_ap": [9.0] * 4, "drift": [1.0] * 4}


@pytest.fixture
def options(world) -> list[str]:
    """A round without guidance and one with, in batches of two."""
    settings = {"GENERATOR.BATCH_SIZE": 2, "GENERATOR.GUIDANCE_SCALE": 0.1, "FEEDBACK.FROM_ROUND": 1}
    settings["GENERATOR.TWINS"] = 2
    overrides = [text for setting in settings.items() for text in map(str, setting)]
    return ["--config", str(world.config), "--round", "2", *overrides]


def drawn(layout: RunLayout) -> list[str]:
    return [name for name in files.list_dir(layout.raw("")) if name.endswith(".png")]


def images(layout: RunLayout) -> dict[str, bytes]:
    return {name: files.read_bytes(layout.raw(name)) for name in drawn(layout)}


def manifests(layout: RunLayout) -> list[Manifest]:
    """Of both rounds, but for the seconds that they took."""
    return [dataclasses.replace(m, seconds=0.0) for round_ in (0, 1) for m in read_round(layout, round_)]


@pytest.mark.bits
def test_killed_twenty_times_it_ends_in_the_same_pool(world, options, python):
    layout = RunLayout(str(world.run))
    write_feedback(layout, dataclasses.replace(FEEDBACK, round=0, **FOUR))
    draw(options)
    whole, listed, twins = images(layout), manifests(layout), files.read_bytes(layout.twins(1))
    assert len(whole) == 24 and {i.guided for m in listed for i in m.instances} == {False, True}
    shutil.rmtree(layout.pool("raw"))
    files.remove(layout.twins(1))

    assert kill_repeatedly(python, "draw", options, furthest=4) >= KILLS
    assert images(layout) == whole and manifests(layout) == listed
    assert files.read_bytes(layout.twins(1)) == twins
    assert all(is_complete(read_round(layout, round_)) for round_ in (0, 1))
    assert not list(Path(layout.root).rglob("*.tmp"))  # a later start removed what killed ones left
