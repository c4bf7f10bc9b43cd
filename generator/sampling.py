"""Sampling one batch of images, of any classes and models."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exchange.errors import UserError
from exchange.shards import Shard
from generator.guidance import Guidance, guided
from generator.pipelines import PipelineSource
from generator.plan import PlannedImage, batches_of_shard, by_model
from generator.prompt_embeddings import PromptEmbeddings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How a pipeline draws: pixels of a side, denoising steps, scale of the classifier-free guidance."""

    size: int = 512
    steps: int = 30
    cfg_scale: float = 5.0


@dataclass(frozen=True)
class SampledImage:
    """One image (H, W, 3) uint8, and the criterion at the first guided step, before anything was shifted, and
    for the finished image (None without guidance)."""

    pixels: npt.NDArray[np.uint8]
    criterion_before: float | None
    criterion_after: float | None
    shifts_left_out: int


class Sampler:
    """Samples batches with one pipeline, which it loads when it is first needed.

    Args:
        limit: at most so many images at once, of larger batches a part at a time; lowered by itself where
            the GPU's memory does not suffice. An image's noise comes from its own seed, so that its parts
            hold the same images as the batch, up to rounding.
    """

    def __init__(
        self, source: PipelineSource, embeddings: PromptEmbeddings, sampling: Sampling, limit: int
    ) -> None:
        self._source, self._embeddings, self._sampling, self._limit = source, embeddings, sampling, limit
        self._pipeline: Any = None

    def check(self) -> None:
        """Raises UserError unless there is such a pipeline, of a kind that can be drawn with."""
        self._source.check()

    def release(self) -> None:
        """Lets go of what draws, and of its memory on the GPU."""
        self._pipeline = None
        if self._source.device.type == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, images: Sequence[PlannedImage]) -> None:
        """Encodes the images' prompts, then loads what draws."""
        if self._pipeline is None or self._embeddings.supported:
            self._embeddings.prepare({image.prompt for image in images})
        if self._pipeline is None:
            embedded = self._embeddings.supported
            self._pipeline = self._source.load_painter() if embedded else self._source.load()

    def sample(self, batch: Sequence[PlannedImage], guidance: Guidance | None = None) -> list[SampledImage]:
        """Images of what has been prepared; UserError if memory does not suffice for one of them."""
        samples: list[SampledImage] = []
        while len(samples) < len(batch):
            part = batch[len(samples) : len(samples) + self._limit]
            try:
                samples += self._sample(part, guidance)
            except torch.cuda.OutOfMemoryError as error:
                if len(part) == 1:
                    raise UserError(
                        "the GPU's memory does not suffice for one image: lower GENERATOR.IMAGE_SIZE, or set "
                        "GENERATOR.GUIDANCE_MODE to decoder"
                    ) from error
                self._limit = len(part) // 2
                _log.warning("out of GPU memory with %d images at once: now %d", len(part), self._limit)
            else:
                continue
            torch.cuda.empty_cache()  # outside of the handler, which keeps the failed pass alive
        return samples

    def _sample(self, batch: Sequence[PlannedImage], guidance: Guidance | None) -> list[SampledImage]:
        classes = torch.tensor([image.class_index for image in batch], device=self._source.device)
        steered = guided(self._pipeline, guidance, classes) if guidance else nullcontext()
        with steered as trace:
            images: Tensor = self._pipeline(
                **self._embeddings([image.prompt for image in batch]),
                height=self._sampling.size,
                width=self._sampling.size,
                num_inference_steps=self._sampling.steps,
                guidance_scale=self._sampling.cfg_scale,
                # On the CPU, so that the noise does not depend on the device.
                generator=[torch.Generator().manual_seed(image.seed) for image in batch],
                output_type="pt",
            ).images
        pixels = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        if guidance is None or trace is None:
            return [SampledImage(each, None, None, 0) for each in pixels]
        with torch.no_grad():
            after = guidance.uncertainty(images.float(), classes)
        values = zip(pixels, trace.first.tolist(), after.tolist(), trace.left_out.tolist(), strict=True)
        return [
            SampledImage(each, _finite(first), _finite(last), count) for each, first, last, count in values
        ]


class Samplers:
    """A sampler for each model by its name, of which one is loaded at a time."""

    def __init__(self, samplers: Mapping[str, Sampler]) -> None:
        self._samplers = samplers
        self._prepared: dict[str, list[PlannedImage]] = {}
        self._loaded: str | None = None

    def prepare(self, images: Sequence[PlannedImage]) -> None:
        """Looks whether the models of all ``images`` are there, and loads that of the first one."""
        self._prepared = by_model(images)
        for name in self._prepared:
            self._samplers[name].check()
        if images:
            self._load(images[0].model)

    def sample(self, batch: Sequence[PlannedImage], guidance: Guidance | None = None) -> list[SampledImage]:
        """Images of what has been prepared, model by model; UserError as :meth:`Sampler.sample`."""
        drawn: dict[str, SampledImage] = {}
        for name, images in by_model(batch).items():
            if name != self._loaded:
                self._load(name)
            made = self._samplers[name].sample(images, guidance)
            drawn |= zip((image.file for image in images), made, strict=True)
        return [drawn[image.file] for image in batch]

    def draw(
        self, images: Sequence[PlannedImage], batch_size: int, guidance: Guidance | None = None
    ) -> list[SampledImage]:
        """All of what has been prepared, in batches as a round's only shard cuts them; in the order of ``images``."""
        drawn: dict[str, SampledImage] = {}
        for batch in batches_of_shard(images, batch_size, Shard()):
            drawn |= zip((image.file for image in batch), self.sample(batch, guidance), strict=True)
        return [drawn[image.file] for image in images]

    def _load(self, name: str) -> None:
        if self._loaded is not None and self._loaded != name:
            self._samplers[self._loaded].release()
        self._loaded = name
        self._samplers[name].prepare(self._prepared[name])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
