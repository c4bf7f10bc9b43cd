"""Steering any diffusers pipeline with a classifier, through its scheduler alone.

Every diffusers pipeline ends a denoising step with ``scheduler.step(prediction, timestep, sample)``. Within
:func:`guided` the scheduler is of a subclass, made on the spot from the pipeline's own, whose ``step`` first
moves ``sample`` to where the classifier is less certain and then does what its parent does. The graph that the
gradient needs is built where the pipeline calls its denoiser, so that a guided step costs a backward pass more.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from exchange.errors import UserError
from generator.clean_image import check_scheduler, clean_estimate, decode_latents, noise_level
from generator.criteria import Criterion, entropy
from generator.denoiser_call import DenoiserCalls

Classifier = Callable[[Tensor], Tensor]
MODES = ("exact", "conditional", "decoder")


@dataclass(frozen=True)
class Guidance:
    """How to steer: per image, ``x ← x + scale · ‖x‖ · g / (‖g‖ + 1e-8)`` (MRCA, uncertainty guidance).

    ``g`` is the gradient, with respect to the noisy latents ``x``, of ``criterion`` for the clean image that
    the model predicts from ``x``.

    Args:
        classifier: images (N, 3, H, W) in [0, 1] → logits (N, C+1), differentiable.
        criterion: see :mod:`generator.criteria`; ascended.
        scale: length of the shift in relation to that of the latents.
        every: guide at the denoising steps 0, ``every``, 2 · ``every``, …
        sigmas: … of these only where the noise level σ lies between the two.
        mode: "exact" differentiates through the denoiser; "conditional" takes the gradient of its conditional
            half for that of both; "decoder" takes its prediction as given.
        chunk: at most so many images in one gradient pass, to save memory at the price of a second call of the
            denoiser; 0: all at once.
        decoder: autoencoder for the gradient pass instead of the pipeline's own, such as an
            ``AutoencoderTiny`` for the same latents.
    """

    classifier: Classifier
    criterion: Criterion = entropy
    scale: float = 0.03
    every: int = 5
    sigmas: tuple[float, float] = (0.0, math.inf)
    mode: str = "exact"
    chunk: int = 0
    decoder: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"GENERATOR.GUIDANCE_MODE is one of {', '.join(MODES)}, not {self.mode!r}")
        if self.every < 1:
            raise UserError(f"GENERATOR.GUIDANCE_EVERY must be at least 1, not {self.every}")

    def uncertainty(self, images: Tensor, classes: Tensor) -> Tensor:
        """The criterion (N,), in float32 or better, of images (N, 3, H, W) in [0, 1] and classes (N,)."""
        logits = self.classifier(images)
        return self.criterion(logits.to(torch.promote_types(logits.dtype, torch.float32)), classes)


@dataclass
class GuidanceTrace:
    """What guidance saw, each (N,): the criterion before the first shift (NaN until then), and the
    number of shifts that were left out because the gradient of that image was not finite."""

    first: Tensor
    left_out: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.left_out = torch.zeros_like(self.first, dtype=torch.int64)


@contextmanager
def guided(pipeline: Any, guidance: Guidance, classes: Tensor) -> Iterator[GuidanceTrace]:
    """Within the block, one call of ``pipeline`` for N images is guided; ``classes`` (N,) is what they show.

    Outside the block the pipeline is what it was, bit for bit. Its networks and the classifier should be frozen
    (``requires_grad_(False)``) where they are loaded: gradients for weights that do not learn cost memory. They are
    not frozen here, since a processor may take other kernels for frozen weights, which round otherwise.

    Raises UserError for a scheduler whose clean estimate is unknown and for a pipeline that combines the outputs of
    its denoiser in an unknown way.
    """
    check_scheduler(pipeline.scheduler)
    steering = _Steering(pipeline, guidance, classes)
    scheduler = pipeline.scheduler
    with steering.calls.watched():
        try:
            pipeline.scheduler = _shifting(scheduler, steering.shift)
            yield steering.trace
        finally:
            pipeline.scheduler = scheduler


def _shifting(scheduler: Any, shift: Callable[[Any, Tensor, Tensor, Tensor], Tensor]) -> Any:
    """A copy of ``scheduler`` whose ``step`` starts from the shifted sample."""
    parent = type(scheduler)

    @functools.wraps(parent.step)  # pipelines read its signature to know what they may pass
    def step(
        self: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        shifted = shift(self, timestep, sample, prediction)
        return parent.step(self, prediction, timestep, shifted, *args, **kwargs)

    twin = copy.copy(scheduler)
    twin.__class__ = type(
        f"Guided{parent.__name__}", (parent,), {"step": step, "__module__": parent.__module__}
    )
    return twin


class _Steering:
    """What happens at the steps of one guided call."""

    def __init__(self, pipeline: Any, guidance: Guidance, classes: Tensor) -> None:
        self.pipeline, self.guidance, self.classes = pipeline, guidance, classes
        self.calls = DenoiserCalls(pipeline, self._wants_graph)
        self.decoder = guidance.decoder or pipeline.vae
        self.trace = GuidanceTrace(torch.full(classes.shape, torch.nan, device=classes.device))
        self.num_steps = 0

    def shift(self, scheduler: Any, timestep: Tensor, sample: Tensor, prediction: Tensor) -> Tensor:
        """The sample that the scheduler shall step from; ``prediction`` is for the one before the shift."""
        if self._is_guided(scheduler, timestep):
            sample = self._ascend(scheduler, timestep, sample, prediction)
        self.calls.forget()
        self.num_steps += 1
        return sample

    def _wants_graph(self) -> bool:
        """Whether the call of the denoiser in this step builds a graph: the noise level is known at its end only."""
        guidance = self.guidance
        at_once = guidance.chunk == 0 or guidance.chunk >= len(self.classes)
        return guidance.mode == "exact" and at_once and self.num_steps % guidance.every == 0

    def _is_guided(self, scheduler: Any, timestep: Tensor) -> bool:
        low, high = self.guidance.sigmas
        return (
            self.num_steps % self.guidance.every == 0
            and low <= noise_level(scheduler, timestep)[1].item() <= high
        )

    def _ascend(self, scheduler: Any, timestep: Tensor, sample: Tensor, prediction: Tensor) -> Tensor:
        if len(sample) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes were given for {len(sample)} images")
        first = bool(self.trace.first.isnan().all())
        size = self.guidance.chunk or len(sample)
        gradients = []
        for start in range(0, len(sample), size):
            rows = slice(start, start + size)
            gradient, value = self._gradient(scheduler, timestep, sample, prediction, rows, check=first)
            gradients.append(gradient)
            if first:
                self.trace.first[rows] = value.to(self.trace.first.dtype)
        gradient = torch.cat(gradients)
        usable = gradient.flatten(1).isfinite().all(dim=1)
        self.trace.left_out += (~usable).to(self.trace.left_out.device)
        return ascend(sample, torch.where(_like(usable, gradient), gradient, 0), self.guidance.scale)

    def _gradient(
        self, scheduler: Any, timestep: Tensor, sample: Tensor, prediction: Tensor, rows: slice, check: bool
    ) -> tuple[Tensor, Tensor]:
        """Of the images ``rows``: the gradient of the criterion for their latents, and the criterion."""
        with torch.enable_grad():
            latents, v = sample[rows].detach().requires_grad_(), prediction[rows]
            if self.guidance.mode == "exact":
                if self.calls.has_graph:
                    v = self.calls.replay(len(sample))
                else:
                    v = self.calls.repeat(scheduler, timestep, latents, rows, len(sample))
                if check:
                    self._check_combination(v.detach(), prediction[rows])
            elif self.guidance.mode == "conditional":
                half = self.calls.repeat(
                    scheduler, timestep, latents, rows, len(sample), conditional_only=True
                )
                v = v + (half - half.detach())
            clean = clean_estimate(scheduler, timestep, latents, v)
            images = decode_latents(self.pipeline, self.decoder, clean, self.calls.keywords)
            value = self.guidance.uncertainty(images, self.classes[rows])
            if self.calls.has_graph:
                gradient = self.calls.gradient(value.sum(), scheduler, timestep, latents)
            else:
                (gradient,) = torch.autograd.grad(value.sum(), latents)
            return gradient, value.detach()

    def _check_combination(self, ours: Tensor, pipelines: Tensor) -> None:
        """Both are the same network's output for the same input, so they differ by rounding at most."""
        difference = (ours - pipelines).float().norm()
        tolerance = 0.1 if ours.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if difference > tolerance * pipelines.float().norm():
            raise UserError(
                f"{type(self.pipeline).__name__} combines the outputs of its denoiser otherwise than by "
                "classifier-free guidance (guidance_rescale, for instance): turn that off, or set "
                "GENERATOR.GUIDANCE_MODE to decoder"
            )


def ascend(sample: Tensor, gradient: Tensor, scale: float) -> Tensor:
    """``sample`` (N, …) moved along ``gradient`` by ``scale`` times its own norm, for each of the N alone."""
    dtype = torch.promote_types(sample.dtype, torch.float32)
    x, g = sample.to(dtype), gradient.to(dtype)
    length = x.flatten(1).norm(dim=1) / (g.flatten(1).norm(dim=1) + 1e-8)
    return (x + scale * _like(length, x) * g).to(sample.dtype)


def _like(per_image: Tensor, other: Tensor) -> Tensor:
    """(N,) as (N, 1, …, 1) with as many dimensions as ``other``."""
    return per_image.view(-1, *[1] * (other.dim() - 1))
