"""Which images a round consists of, with which prompts and models, and which of them a shard draws."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.seeds import instance_seed
from exchange.shards import Shard
from generator.allocation import IntArray, largest_remainder

NAME_STYLES = ("raw", "clean")


def clean_name(name: str) -> str:
    """A category name as a person would write it: ``bat_(animal)`` becomes ``bat animal``."""
    return " ".join(re.sub(r"[_()\[\]]", " ", name).split())


@dataclass(frozen=True)
class Sentences:
    """Prompts that are a category's own, by its name, and the share of its images that are drawn with them.

    Of n images in a row n · ``share`` have one, rounded up or down; the sentences come in the order that they have,
    each once before any twice.
    """

    of_category: Mapping[str, Sequence[str]]
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"GENERATOR.PROMPT_SHARE must be above 0 and at most 1, not {self.share}")

    def at(self, name: str, place: int) -> str | None:
        """The sentence at ``place`` (from 1 on) in the row of the category's images, None where a template stands."""
        share = Fraction(str(self.share))  # what was written, not the binary number next to it
        before, now = int((place - 1) * share), int(place * share)
        sentences = self.of_category[name]
        return sentences[before % len(sentences)] if now > before else None


@dataclass(frozen=True)
class PromptBook:
    """Draws one of ``templates`` for an instance and fills in what is known of its category.

    ``sentences``, where there are any, take the place of the template for their share of a category's images.

    A template holds ``{}`` or ``{name}`` for the name, and may hold ``{synonym}`` (one of the category's
    synonyms) and ``{definition}``, where LVIS's category records have them and else the name. Names (and
    synonyms) stand there as in the annotations ("raw", as in the reference) or cleaned ("clean").
    """

    templates: Sequence[str]
    names: str = "raw"
    sentences: Sentences | None = None

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

    def prompt(self, category: dict[str, Any], seed: int, place: int = 1) -> tuple[str, str]:
        """Template and prompt of the instance with this seed, templates (and synonyms) drawn uniformly.

        ``category`` is a record of the annotation file; the seed, a hash already, is its own random number; ``place``
        is where :class:`Sentences` has the instance. A sentence is its own template.
        """
        sentence = self.sentences.at(category["name"], place) if self.sentences else None
        if sentence is not None:
            return sentence, sentence
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
    """One image to draw; ``class_index`` counts from 0 over the sorted category ids, ``model`` names what draws it."""

    file: str
    category_id: int
    class_index: int
    instance: int
    seed: int
    template: str
    prompt: str
    model: str = ""


def plan_round(
    categories: Sequence[dict[str, Any]], images: IntArray, book: PromptBook, run_seed: int, round_: int
) -> list[PlannedImage]:
    """All images of a round, in order of category id and of their number in it (from 1), without their models.

    Args:
        categories: (C,) records of the annotation file, sorted by id.
        images: (C,) how many of each.
    """
    plan = []
    for index, (category, count) in enumerate(zip(categories, images.tolist(), strict=True)):
        start = instance_seed(run_seed, round_, category["id"], 0)  # so that a round goes on somewhere else
        for instance in range(1, count + 1):
            seed = instance_seed(run_seed, round_, category["id"], instance)
            template, prompt = book.prompt(category, seed, start + instance)
            file = RunLayout.instance_name(round_, category["id"], instance)
            plan.append(PlannedImage(file, category["id"], index, instance, seed, template, prompt))
    return plan


@dataclass(frozen=True)
class Model:
    """A generator: hub name or folder, its part of the images in relation to the others', revision in the hub."""

    name: str
    share: float
    revision: str


def share_among(plan: Sequence[PlannedImage], models: Sequence[Model]) -> list[PlannedImage]:
    """The plan of a round with the model of each image.

    Each model gets its share of the whole plan, by largest remainder (the model named first before one that is alike),
    and of each category two images more or less than its share at most: image by image, the model that is furthest
    behind. Categories stand in the order of their first seeds meanwhile and their images in that of their own, so that
    neither is a model bound to some categories nor to a place in the row of :class:`Sentences`.
    """
    parts = np.array([model.share for model in models]) / sum(model.share for model in models) * len(plan)
    quotas = largest_remainder(parts, len(plan), np.arange(len(models))).tolist()
    first: dict[int, int] = {}
    for image in plan:
        first.setdefault(image.category_id, image.seed)
    order = sorted(range(len(plan)), key=lambda k: (first[plan[k].category_id], plan[k].seed))
    given, names = [0] * len(models), [""] * len(plan)
    for place, k in enumerate(order, start=1):
        behind = [quota * place - count * len(plan) for quota, count in zip(quotas, given, strict=True)]
        chosen = behind.index(max(behind))
        given[chosen] += 1
        names[k] = models[chosen].name
    return [replace(image, model=name) for image, name in zip(plan, names, strict=True)]


def by_model(images: Sequence[PlannedImage]) -> dict[str, list[PlannedImage]]:
    """The images of each model, in the order in which they and the models come."""
    groups: dict[str, list[PlannedImage]] = {}
    for image in images:
        groups.setdefault(image.model, []).append(image)
    return groups


def batches_of_shard(
    plan: Sequence[PlannedImage], batch_size: int, shard: Shard
) -> list[Sequence[PlannedImage]]:
    """The batches that a shard draws, model by model: every ``shard.count``-th of those that the plan is cut into.

    So a batch holds the same images whatever the number of shards and whatever is on disk already, and its
    pixels are the same to the last bit on the same kind of machine.
    """
    batches = [
        images[start : start + batch_size]
        for images in by_model(plan).values()
        for start in range(0, len(images), batch_size)
    ]
    return batches[shard.index :: shard.count]
