import collections

import pytest

from exchange.errors import UserError
from exchange.seeds import instance_seed
from generator.plan import PromptBook, clean_name

SEVEN = tuple(f"template {i} of {{}}" for i in range(7))
BAT = {
    "id": 2,
    "name": "bat_(animal)",
    "synonyms": ["bat_(animal)", "flying_mouse"],
    "def": "nocturnal mammal",
}


def test_templates_are_drawn_uniformly_from_the_instances_own_seed():
    book = PromptBook(SEVEN)
    drawn = collections.Counter(
        book.prompt(BAT, instance_seed(0, 3, 2, instance))[0] for instance in range(7000)
    )
    assert set(drawn) == set(SEVEN)
    assert max(abs(count - 1000) for count in drawn.values()) < 5 * (1000 * 6 / 7) ** 0.5  # five deviations


def test_names_are_raw_or_cleaned():
    assert PromptBook(["a {}"], "raw").prompt(BAT, 0) == ("a {}", "a bat_(animal)")
    assert PromptBook(["a {}"], "clean").prompt(BAT, 0) == ("a {}", "a bat animal")
    assert (
        clean_name("monitor_(computer_equipment) [computer_monitor]")
        == "monitor computer equipment computer monitor"
    )


def test_synonyms_and_definitions_fill_the_templates_that_ask_for_them():
    book = PromptBook(["{synonym}: {definition}", "the {synonym}"], "clean")
    assert {book.prompt(BAT, seed)[1] for seed in range(20)} == {
        "bat animal: nocturnal mammal",
        "flying mouse: nocturnal mammal",
        "the bat animal",
        "the flying mouse",
    }
    assert book.prompt({"id": 1, "name": "a_cow", "synonyms": [], "def": ""}, 4)[1] == "a cow: a cow"


@pytest.mark.parametrize(
    "templates", [[], ["a photo"], ["{} of {other}"], ["{name.first}"], ["{"], ["{} and {}"]]
)
def test_template_that_does_not_work_is_refused_by_name(templates):
    with pytest.raises(UserError, match="GENERATOR.TEMPLATES"):
        PromptBook(templates)
