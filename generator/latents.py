"""From a pipeline's latents to images, by the pipeline's own rules."""

from typing import Any

import torch
from torch import Tensor, nn


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
