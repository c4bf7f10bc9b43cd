"""Which images a round consists of, with which prompts, and which of them a shard draws."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.seeds import instance_seed
from exchange.shards import Shard
from generator.allocation import IntArray

NAME_STYLES = ("raw", "clean")


def clean_name(name: str) -> str:
    """A category name as a person would write it: ``bat_(animal)`` becomes ``bat animal``."""
    return " ".join(re.sub(r"[_()\[\]]", " ", name).split())


@dataclass(frozen=True)
class PromptBook:
    """Draws one of ``templates`` for an instance and fills in what is known of its category.

    A template holds ``{}`` or ``{name}`` for the name, and may hold ``{synonym}`` (one of the category's
    synonyms) and ``{definition}``, where LVIS's category records have them and else the name. Names (and
    synonyms) stand there as in the annotations ("raw", as in the reference) or cleaned ("clean").
    """

    templates: Sequence[str]
    names: str = "raw"

    def __post_init__(self) -> None:
        if self.names not in NAME_STYLES:
            raise UserError(f"GENERATOR.NAMES is one of {', '.join(NAME_STYLES)}, not {self.names!r}")
        if not self.templates:
            raise UserError("GENERATOR.TEMPLATES is empty: give at least one, such as 'a photo of {}'")
        for template in self.templates:
            try:
                texts = [template.format(n, name=n, synonym=n, definition=n) for n in ("one", "other")]
            except (LookupError, ValueError, AttributeError) as error:
                raise UserError(
                    f"GENERATOR.TEMPLATES holds {template!r}, which does not work: write {{}} or {{name}} "
                    "for the category's name, {synonym} or {definition} for what LVIS adds"
                ) from error
            if texts[0] == texts[1]:
                raise UserError(f"GENERATOR.TEMPLATES holds {template!r}, which names no category: add {{}}")

    def prompt(self, category: dict[str, Any], seed: int) -> tuple[str, str]:
        """Template and prompt of the instance with this seed, templates (and synonyms) drawn uniformly.

        ``category`` is a record of the annotation file; the seed, a hash already, is its own random number.
        """
        rest, index = divmod(seed, len(self.templates))
        synonyms = category.get("synonyms") or [category["name"]]
        write = clean_name if self.names == "clean" else str
        name = write(category["name"])
        template = self.templates[index]
        text = template.format(
            name,
            name=name,
            synonym=write(synonyms[rest % len(synonyms)]),
            definition=category.get("def") or name,
        )
        return template, text


@dataclass(frozen=True)
class PlannedImage:
    """One image to draw; ``class_index`` counts from 0 over the sorted category ids."""

    file: str
    category_id: int
    class_index: int
    instance: int
    seed: int
    template: str
    prompt: str


def plan_round(
    categories: Sequence[dict[str, Any]], images: IntArray, book: PromptBook, run_seed: int, round_: int
) -> list[PlannedImage]:
    """All images of a round, in order of category id and of their number in it (from 1).

    Args:
        categories: (C,) records of the annotation file, sorted by id.
        images: (C,) how many of each.
    """
    plan = []
    for index, (category, count) in enumerate(zip(categories, images.tolist(), strict=True)):
        for instance in range(1, count + 1):
            seed = instance_seed(run_seed, round_, category["id"], instance)
            template, prompt = book.prompt(category, seed)
            file = RunLayout.instance_name(round_, category["id"], instance)
            plan.append(PlannedImage(file, category["id"], index, instance, seed, template, prompt))
    return plan


def batches_of_shard(
    plan: Sequence[PlannedImage], batch_size: int, shard: Shard
) -> Iterator[Sequence[PlannedImage]]:
    """The batches that a shard draws: every ``shard.count``-th of those that the whole plan is cut into.

    So a batch holds the same images whatever the number of shards and whatever is on disk already, and its
    pixels are the same to the last bit on the same kind of machine.
    """
    starts = np.arange(0, len(plan), batch_size)[shard.index :: shard.count]
    return (plan[start : start + batch_size] for start in starts.tolist())
