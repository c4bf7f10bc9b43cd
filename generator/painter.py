"""Drawing images of one category from Python, guided by a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from detectron2_ext.modeling.builder import load_feedback_network
from detectron2_ext.modeling.described import DescribedWeights, last_checkpoint, read_described
from exchange.config import at_least
from exchange.errors import UserError
from generator.build import (
    build_guidance,
    build_prompt_book,
    build_sampler,
    chosen_models,
    load_gradient_decoder,
)
from generator.pipelines import choose_device
from generator.plan import plan_round, share_among


class Painter:
    """Draws as stage 1 does: the pipeline, prompts and guidance of a checkpoint's settings, and its network.

    ``guided`` False: the network is not asked. Raises UserError for models that cannot be loaded.
    """

    def __init__(self, weights: DescribedWeights, guided: bool = True) -> None:
        cfg = self.cfg = weights.cfg
        self._categories = [{"id": category.id, "name": category.name} for category in weights.categories]
        device = choose_device(0) if cfg.MODEL.DEVICE != "cpu" else torch.device("cpu")
        self._book = build_prompt_book(cfg, [category.name for category in weights.categories])
        self._guidance = None
        if guided and cfg.GENERATOR.GUIDANCE_SCALE > 0:
            network = load_feedback_network(cfg, weights.path, content=weights.content, device=device)
            self._guidance = build_guidance(cfg, network, load_gradient_decoder(cfg, device))
        self._sampler = build_sampler(cfg, device, limit=at_least(1, cfg, "GENERATOR.BATCH_SIZE"))

    @classmethod
    def from_run(
        cls, run: str | os.PathLike[str], overrides: Sequence[str] = (), guided: bool = True
    ) -> Painter:
        """With the last checkpoint of a run folder; ``overrides``: keys and values in turn, over its settings."""
        return cls(read_described(last_checkpoint(run), overrides), guided)

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], overrides: Sequence[str] = (), guided: bool = True
    ) -> Painter:
        """With a checkpoint of a run, or a file that ``mrca export`` wrote."""
        return cls(read_described(path, overrides), guided)

    def draw(self, name: str, num: int, seed: int = 0) -> list[Image.Image]:
        """``num`` images of the category ``name``, with the noise of those that round 0 of a run with this ``seed``
        begins with, and their prompts, but for synonyms and definitions, which a checkpoint does not have.

        Several generators (GENERATOR.MODELS) share them, and not as they share a round. Raises UserError for a name
        that is none of the checkpoint's categories.
        """
        names = [category["name"] for category in self._categories]
        if name not in names:
            raise UserError(
                f"the checkpoint knows no category {name!r}: its categories are {', '.join(names)[:500]}"
            )
        counts = np.array([num if known == name else 0 for known in names], dtype=np.int64)
        plan = plan_round(self._categories, counts, self._book, seed, round_=0)
        plan = share_among(plan, chosen_models(self.cfg))
        self._sampler.prepare(plan)
        drawn = self._sampler.draw(plan, self.cfg.GENERATOR.BATCH_SIZE, self._guidance)
        return [Image.fromarray(image.pixels) for image in drawn]
