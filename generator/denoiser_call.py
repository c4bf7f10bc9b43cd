"""A pipeline's call of its denoiser, caught: with the graph that a gradient needs, or to be made again for one."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exchange.errors import UserError

_FOR_ALL_IMAGES = ("img_ids", "txt_ids")  # Flux: positions of patches and words, no batch dimension


def denoiser_of(pipeline: Any) -> Any:
    """The network that predicts: the pipeline's transformer or its UNet, whichever it has."""
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


class DenoiserCalls:
    """Watches how a pipeline calls its denoiser.

    Where ``wants_graph`` says so at the time of a call, that call builds a graph: its latents require a gradient, and
    the pipeline goes on with the output detached. Values are the same bits, since weights and kernels are the same.
    """

    def __init__(self, pipeline: Any, wants_graph: Callable[[], bool]) -> None:
        self.pipeline = pipeline
        self.denoiser = denoiser_of(pipeline)
        self._wants_graph = wants_graph
        self._caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._graph: tuple[Tensor, Tensor] | None = None  # latents that entered the denoiser, what came out

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block calls are caught; their hooks are gone afterwards."""
        hooks = (
            self.denoiser.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.denoiser.register_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.forget()

    def forget(self) -> None:
        """Lets go of the calls of a step, and of the memory of the graph."""
        self._caught.clear()
        self._graph = None

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.is_grad_enabled():  # pipelines run without gradients; :meth:`repeat` with them
            return None
        self._caught.append((args, kwargs))
        if not self._wants_graph():
            return None
        latents = _latents(args, kwargs).detach().requires_grad_()
        self._graph = (latents, latents)  # until there is an output
        torch.set_grad_enabled(True)  # until the call ends, however it ends
        return _with_latents(args, kwargs, latents)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._graph is None or self._graph[0] is not self._graph[1]:
            return None
        torch.set_grad_enabled(False)
        if output is None:  # the call failed
            return None
        self._graph = (self._graph[0], output[0])
        if isinstance(output, tuple):
            return (output[0].detach(), *output[1:])
        return dataclasses.replace(output, sample=output[0].detach())

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of the one call in this step."""
        return self._only()[1]

    @property
    def has_graph(self) -> bool:
        """Whether the call in this step built a graph."""
        return self._graph is not None

    def replay(self, num_images: int) -> Tensor:
        """What the pipeline predicts for all its ``num_images`` images, with the graph of its own call."""
        self._only()
        assert self._graph is not None
        return self._combine(self._graph[1], num_images)

    def gradient(self, value: Tensor, scheduler: Any, timestep: Tensor, sample: Tensor) -> Tensor:
        """Of ``value`` for the latents ``sample`` (N, …), on which it depends by itself and by :meth:`replay`."""
        assert self._graph is not None
        entered = self._graph[0]
        direct, through = torch.autograd.grad(value, (sample, entered))
        stacked = _stack(scheduler, timestep, sample, len(entered) // len(sample))
        return direct + torch.autograd.grad(stacked, sample, through)[0]

    def repeat(
        self,
        scheduler: Any,
        timestep: Tensor,
        sample: Tensor,
        rows: slice,
        num_images: int,
        conditional_only: bool = False,
    ) -> Tensor:
        """What the pipeline would predict for some of its images if their latents were ``sample``: a second call.

        The two halves of classifier-free guidance are combined as the pipeline does it.

        Args:
            sample: (n, …) latents of the images ``rows`` out of ``num_images`` in the batch.
            conditional_only: predict the conditional half alone, and return that.
        """
        args, kwargs = self._only()
        batch = len(_latents(args, kwargs))
        copies = batch // num_images
        halves = slice(copies - 1, None) if conditional_only else slice(None)

        def take(value: Tensor) -> Tensor:
            return value.unflatten(0, (copies, -1))[halves, rows].flatten(0, 1)

        stacked = _stack(scheduler, timestep, sample, 1 if conditional_only else copies)
        named = {
            name: value if name in _FOR_ALL_IMAGES else _select(value, batch, take)
            for name, value in kwargs.items()
        }
        rest = tuple(_select(value, batch, take) for value in args)
        args, named = _with_latents(rest, named, stacked)
        output = self.denoiser(*args, **named)[0]
        return self._combine(output, len(sample))

    def _combine(self, output: Tensor, num_images: int) -> Tensor:
        if len(output) == num_images:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + self.pipeline.guidance_scale * (conditional - unconditional)

    def _only(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(self._caught) != 1:
            raise UserError(
                f"{type(self.pipeline).__name__} calls its denoiser {len(self._caught)} times per step, and "
                "uncertainty guidance knows pipelines that call it once: turn off what adds a call (such as "
                "true_cfg_scale or skip_guidance_layers)"
            )
        return self._caught[0]


def _latents(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    latents: Tensor = args[0] if args else kwargs["hidden_states"]
    return latents


def _with_latents(
    args: tuple[Any, ...], kwargs: dict[str, Any], latents: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((latents, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": latents})


def _stack(scheduler: Any, timestep: Tensor, sample: Tensor, copies: int) -> Tensor:
    """What enters the denoiser for the latents ``sample``: (copies · n, …)."""
    stacked = torch.cat([sample] * copies)
    if hasattr(scheduler, "scale_model_input"):
        stacked = scheduler.scale_model_input(stacked, timestep)
    return stacked


def _select(value: Any, batch: int, take: Callable[[Tensor], Tensor]) -> Any:
    """``take`` applied to ``value`` where it is (or holds) a tensor with one entry for each of a batch."""
    if isinstance(value, dict):
        return {key: _select(item, batch, take) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch:
        return take(value)
    return value
