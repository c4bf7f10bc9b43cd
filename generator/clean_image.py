"""The clean image that a diffusion model's prediction stands for, whatever scheduler and autoencoder are in use."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch
from torch import Tensor, nn

from exchange.errors import UserError

# Schedulers whose every step starts from the sample that it is given. (Heun's, UniPC's and other correctors
# go back to a sample of their own, so that a shift would be lost.) They differ in how the noisy sample x
# relates to the clean one: x = alpha · clean + sigma · noise, with
_FLOW = (d.FlowMatchEulerDiscreteScheduler,)  # alpha = 1 − sigma
_UNSCALED = (d.EulerDiscreteScheduler, d.EulerAncestralDiscreteScheduler, d.LMSDiscreteScheduler)  # alpha = 1
_SOLVERS = (d.DPMSolverMultistepScheduler, d.DEISMultistepScheduler)  # by a function of their own
_VARIANCE_PRESERVING = (d.DDIMScheduler, d.DDPMScheduler, d.PNDMScheduler)  # alpha² + sigma² = 1
KNOWN_SCHEDULERS = _FLOW + _UNSCALED + _SOLVERS + _VARIANCE_PRESERVING


def check_scheduler(scheduler: Any) -> None:
    """Raises UserError unless :func:`clean_estimate` knows this scheduler and what its model predicts."""
    if not isinstance(scheduler, KNOWN_SCHEDULERS):
        raise UserError(
            f"uncertainty guidance does not know how to steer {type(scheduler).__name__}: use one of "
            f"{', '.join(kind.__name__ for kind in KNOWN_SCHEDULERS)}, or set GENERATOR.GUIDANCE_SCALE to 0"
        )
    if _prediction_type(scheduler) not in ("flow_prediction", "epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{type(scheduler).__name__} has the prediction type {_prediction_type(scheduler)!r}, from which "
            "uncertainty guidance cannot tell the clean image: set GENERATOR.GUIDANCE_SCALE to 0"
        )


def clean_estimate(scheduler: Any, timestep: Tensor, sample: Tensor, prediction: Tensor) -> Tensor:
    """The clean sample x̂₀ of a noisy ``sample`` at ``timestep``, differentiable in sample and prediction.

    With x = α·x₀ + σ·ε: ``x − σ·v`` for flow matching (v = ε − x₀, α = 1 − σ; Lipman et al. 2023),
    ``(x − σ·ε) / α`` for ε-prediction (Ho et al. 2020), ``(α·x − σ·n·v) / n²`` with n² = α² + σ² for
    v-prediction (Salimans and Ho 2022; n = 1 where the scheduler preserves the variance).
    """
    alpha, sigma = (level.to(sample.device, sample.dtype) for level in noise_level(scheduler, timestep))
    kind = _prediction_type(scheduler)
    if kind == "flow_prediction":
        return sample - sigma * prediction
    if kind == "epsilon":
        return (sample - sigma * prediction) / alpha
    if kind == "v_prediction":
        norm = torch.sqrt(alpha**2 + sigma**2)
        return (alpha * sample - sigma * norm * prediction) / norm**2
    return prediction


def _prediction_type(scheduler: Any) -> str:
    return "flow_prediction" if isinstance(scheduler, _FLOW) else scheduler.config.prediction_type


def noise_level(scheduler: Any, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ at the step that the scheduler is about to take, each a tensor of no dimension."""
    if isinstance(scheduler, _VARIANCE_PRESERVING):
        alpha_squared = scheduler.alphas_cumprod[int(timestep)]
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
    if scheduler.step_index is None:  # before its first step; the scheduler's own first act in step()
        scheduler._init_step_index(timestep)
    sigma = scheduler.sigmas[scheduler.step_index]
    if isinstance(scheduler, _FLOW):
        return 1 - sigma, sigma
    if isinstance(scheduler, _SOLVERS):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return torch.as_tensor(alpha), torch.as_tensor(sigma)
    return torch.ones_like(sigma), sigma


def decode_latents(pipeline: Any, decoder: nn.Module, latents: Tensor, call: dict[str, Any]) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], in float32 or better, of latents as the scheduler sees them.

    Args:
        decoder: the pipeline's VAE or one for the same latents; its own scaling and shift apply.
        call: keyword arguments of the denoiser; where latents are packed into patches (Flux), its
            ``img_ids`` tell height and width.
    """
    if latents.dim() == 3:
        height, width = (int(size) + 1 for size in call["img_ids"][:, 1:3].amax(dim=0))
        pixels = 2 * pipeline.vae_scale_factor
        latents = pipeline._unpack_latents(
            latents, height * pixels, width * pixels, pipeline.vae_scale_factor
        )
    latents = latents / decoder.config.scaling_factor + (decoder.config.get("shift_factor") or 0.0)
    images = decoder.decode(latents.to(decoder.dtype), return_dict=False)[0]
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return (images / 2 + 0.5).clamp(0, 1)
