"""A pipeline's call of its denoiser, caught, to be made again for some of its images with a gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exchange.errors import UserError

_FOR_ALL_IMAGES = ("img_ids", "txt_ids")  # Flux: positions of patches and words, no batch dimension


def denoiser_of(pipeline: Any) -> Any:
    """The network that predicts: the pipeline's transformer or its UNet, whichever it has."""
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


class DenoiserCalls:
    """Catches, as a forward pre-hook with keyword arguments, how a pipeline calls its denoiser."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.denoiser = denoiser_of(pipeline)
        self.caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():  # pipelines run without gradients; :meth:`repeat` with them
            self.caught.append((args, kwargs))

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of the one call in this step."""
        return self._only()[1]

    def repeat(
        self,
        scheduler: Any,
        timestep: Tensor,
        sample: Tensor,
        rows: slice,
        num_images: int,
        conditional_only: bool = False,
    ) -> Tensor:
        """What the pipeline would predict for some of its images if their latents were ``sample``.

        The two halves of classifier-free guidance are combined as the pipeline does it.

        Args:
            sample: (n, …) latents of the images ``rows`` out of ``num_images`` in the batch.
            conditional_only: predict the conditional half alone, and return that.
        """
        args, kwargs = self._only()
        batch = len(args[0] if args else kwargs["hidden_states"])
        copies = batch // num_images
        halves = slice(copies - 1, None) if conditional_only else slice(None)

        def take(value: Tensor) -> Tensor:
            return value.unflatten(0, (copies, -1))[halves, rows].flatten(0, 1)

        stacked = torch.cat([sample] * (1 if conditional_only else copies))
        if hasattr(scheduler, "scale_model_input"):
            stacked = scheduler.scale_model_input(stacked, timestep)
        named = {
            name: value if name in _FOR_ALL_IMAGES else _select(value, batch, take)
            for name, value in kwargs.items()
        }
        if args:
            rest = (_select(value, batch, take) for value in args[1:])
            output = self.denoiser(stacked, *rest, **named)[0]
        else:
            output = self.denoiser(**{**named, "hidden_states": stacked})[0]
        if len(output) == len(sample):
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + self.pipeline.guidance_scale * (conditional - unconditional)

    def _only(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(self.caught) != 1:
            raise UserError(
                f"{type(self.pipeline).__name__} calls its denoiser {len(self.caught)} times per step, and "
                "uncertainty guidance knows pipelines that call it once: turn off what adds a call (such as "
                "true_cfg_scale or skip_guidance_layers)"
            )
        return self.caught[0]


def _select(value: Any, batch: int, take: Callable[[Tensor], Tensor]) -> Any:
    """``take`` applied to ``value`` where it is (or holds) a tensor with one entry for each of a batch."""
    if isinstance(value, dict):
        return {key: _select(item, batch, take) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch:
        return take(value)
    return value
