"""Which images a round consists of, and which of them a shard draws."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exchange.layout import RunLayout
from exchange.seeds import instance_seed
from generator.allocation import IntArray
from generator.prompts import PromptBook


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
    plan: Sequence[PlannedImage], batch_size: int, shard: int, num_shards: int
) -> Iterator[Sequence[PlannedImage]]:
    """The batches that a shard draws: every ``num_shards``-th of those that the whole plan is cut into.

    So a batch holds the same images whatever the number of shards and whatever is on disk already, and its
    pixels are the same to the last bit on the same kind of machine.
    """
    starts = np.arange(0, len(plan), batch_size)[shard::num_shards]
    return (plan[start : start + batch_size] for start in starts.tolist())
