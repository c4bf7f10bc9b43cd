"""Loading a diffusers pipeline, whole or in parts, from the hub or from a folder, onto a device."""

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from exchange.config import model_source
from exchange.errors import UserError
from generator.denoiser_call import denoiser_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TEXT_PARTS = ("tokenizer", "text_encoder")
_IMAGE_PARTS = ("transformer", "unet", "vae", "safety_checker", "image_encoder", "feature_extractor")
# What diffusers and transformers let through for a model that is not whole, or not of a kind that they have.
LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError),
)
_log = logging.getLogger(__name__)


def choose_device(gpu: int) -> torch.device:
    """CUDA device ``gpu``, or the CPU where there is none at all; UserError if only this one is missing."""
    count = torch.cuda.device_count()
    if count == 0:
        _log.info("no GPU here: images are drawn on the CPU")
        return torch.device("cpu")
    if not 0 <= gpu < count:
        present = ", ".join(f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count))
        raise UserError(f"there is no GPU {gpu}: --gpu takes one of {present}")
    return torch.device("cuda", gpu)


@dataclass(frozen=True)
class Tuning:
    """What trades time against memory: ``checkpointing`` recomputes activations in the gradient pass of the
    guidance, ``channels_last`` is a layout for convolutions, ``compiled`` runs torch.compile on the denoiser."""

    checkpointing: bool = False
    channels_last: bool = False
    compiled: bool = False

    def apply(self, pipeline: Any) -> None:
        """Prepares the denoiser and the autoencoder of a pipeline, as far as it has them."""
        denoiser = denoiser_of(pipeline)
        for network in filter(None, (denoiser, pipeline.vae)):
            if self.checkpointing:
                network.enable_gradient_checkpointing()
            if self.channels_last:
                network.to(memory_format=torch.channels_last)
        if self.compiled and denoiser is not None:
            denoiser.forward = torch.compile(denoiser.forward)  # not its call, whose hooks guidance needs


@dataclass(frozen=True)
class PipelineSource:
    """Where a text-to-image pipeline comes from and where it goes.

    Args:
        name: a folder, or a repository on the Hugging Face hub.
        revision: branch, tag or commit of the repository.
        dtype: one of ``DTYPES``.

    Its methods raise UserError for a pipeline that cannot be loaded; for a gated repository the message
    names the page where access is granted.
    """

    name: str
    revision: str
    dtype: str
    device: torch.device
    tuning: Tuning = Tuning()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"GENERATOR.DTYPE is one of {', '.join(DTYPES)}, not {self.dtype!r}")

    @cached_property
    def index(self) -> dict[str, Any]:
        """The pipeline's ``model_index.json``: its class, and library and class of its parts."""
        try:
            return dict(diffusers.DiffusionPipeline.load_config(model_source(self.name), **self._hub))
        except LOADING_ERRORS as error:
            raise UserError(explain_loading("GENERATOR.MODEL", self.name, error)) from error

    @property
    def text_files(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file of the text parts in a folder, where others may take their place."""
        folder = Path(model_source(self.name))
        found = sorted(path for part in _TEXT_PARTS for path in folder.glob(f"{part}*/*"))
        return [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in found]

    def check(self) -> None:
        """Raises UserError unless there is such a pipeline, of a kind that can be drawn with."""
        if "vae" not in self.index:
            raise UserError(
                f"{self.name} ({self.index.get('_class_name')}) has no VAE: take a pipeline that draws latents, such "
                "as those of Stable Diffusion, SDXL and Flux"
            )

    def load(self) -> Any:
        """The whole pipeline."""
        return self._load(without=())

    def load_encoders(self) -> Any:
        """Only what turns a prompt into embeddings."""
        if self.index.get("text_encoder_3") == [None, None]:
            # SD3 without its T5 asks the transformer how wide the zeros in that one's place are
            return self._load(without=tuple(part for part in _IMAGE_PARTS if part != "transformer"))
        return self._load(without=_IMAGE_PARTS)

    def load_painter(self) -> Any:
        """Only what turns embeddings into an image."""
        return self._load(without=_TEXT_PARTS)

    @property
    def _hub(self) -> dict[str, Any]:
        return {"revision": self.revision, "token": os.environ.get("HF_TOKEN")}

    def _load(self, without: tuple[str, ...]) -> Any:
        self.check()
        # diffusers wants to be told, too, which parts a pipeline was saved without (SD3's T5, say)
        absent = {
            part: None
            for part, kind in self.index.items()
            if part.startswith(without) or kind == [None, None]
        }
        try:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                model_source(self.name), dtype=DTYPES[self.dtype], use_safetensors=True, **absent, **self._hub
            )
        except LOADING_ERRORS as error:
            raise UserError(explain_loading("GENERATOR.MODEL", self.name, error)) from error
        vae = pipeline.vae
        if self.dtype == "float16" and vae is not None and vae.config.get("force_upcast"):
            raise UserError(
                f"the VAE of {self.name} overflows in float16: set GENERATOR.DTYPE to bfloat16 or float32"
            )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(self.device)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                # Once and for all: kernels, and so the last bits, may depend on it.
                part.requires_grad_(False)
        self.tuning.apply(pipeline)
        return pipeline


def load_tiny_autoencoder(name: str, dtype: str, device: torch.device) -> diffusers.AutoencoderTiny:
    """A distilled autoencoder such as TAESD, for latents of the same pipeline; UserError if it is none."""
    try:
        model = diffusers.AutoencoderTiny.from_pretrained(
            model_source(name), dtype=DTYPES[dtype], use_safetensors=True, token=os.environ.get("HF_TOKEN")
        )
    except LOADING_ERRORS as error:
        raise UserError(explain_loading("GENERATOR.GUIDANCE_DECODER", name, error)) from error
    return model.to(device).eval().requires_grad_(False)


def explain_loading(key: str, name: str, error: BaseException) -> str:
    """The sentence for the model ``name``, given as ``key``, that did not load."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"{name} is only for those who accepted its licence: do so at https://huggingface.co/{name}, "
            "then set the environment variable HF_TOKEN to an access token of that account"
        )
    if any(isinstance(cause, (HFValidationError, RepositoryNotFoundError)) for cause in causes):
        return f"{key} {name!r} is neither a folder nor a repository on the Hugging Face hub"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"{key} {name!r} cannot be loaded ({reason}): check name and network; weights are read from .safetensors "
        "only, which save_pretrained writes"
    )
