"""Prompt embeddings: computed once for each prompt, kept, and the text encoders released."""

import hashlib
import inspect
import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from exchange import files
from exchange.errors import UserError
from generator.pipelines import PipelineSource

Embedding = dict[str, Tensor]
_EMPTY = ""  # the prompt of the unconditional half, which is no category's
_log = logging.getLogger(__name__)

# Of each pipeline class: the arguments of its call, in the order in which its encode_prompt returns them.
_WITH_NEGATIVE = ("prompt_embeds", "negative_prompt_embeds")
_WITH_POOLED = (*_WITH_NEGATIVE, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_ARGUMENTS = {
    "StableDiffusionPipeline": _WITH_NEGATIVE,
    "StableDiffusionXLPipeline": _WITH_POOLED,
    "StableDiffusion3Pipeline": _WITH_POOLED,
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}


class EmbeddingFolder:
    """Embeddings by prompt in a folder (or fsspec URL), a safetensors file each, for any number of processes.

    ``key`` names all that an embedding depends on besides its prompt.
    """

    def __init__(self, folder: str, key: str) -> None:
        self._folder, self._key = folder, key

    def __contains__(self, prompt: str) -> bool:
        """Whether the embedding is there, whole: a damaged one is made again."""
        try:
            return bool(self[prompt])
        except (UserError, SafetensorError):
            return False

    def __getitem__(self, prompt: str) -> Embedding:
        return load(files.read_bytes(self._path(prompt)))

    def __setitem__(self, prompt: str, embedding: Embedding) -> None:
        files.write_bytes(self._path(prompt), save(embedding))

    def _path(self, prompt: str) -> str:
        digest = hashlib.sha256(f"{self._key}\n{prompt}".encode()).hexdigest()
        return files.join(self._folder, digest[:2], f"{digest}.safetensors")


class PromptEmbeddings:
    """Turns prompts into the arguments with which a pipeline is called.

    Each prompt is encoded by itself, so that its embedding does not depend on its neighbours in a batch.

    Args:
        source: of the pipeline; its encoders are loaded for :meth:`prepare` only.
        classifier_free: whether the embedding of the empty prompt is needed too.
        max_sequence_length: tokens of the T5 encoder, where there is one or its place is filled with zeros.
        store: where embeddings are kept.
    """

    def __init__(
        self,
        source: PipelineSource,
        classifier_free: bool,
        max_sequence_length: int,
        store: dict[str, Embedding] | EmbeddingFolder,
    ) -> None:
        self._source, self._store = source, store
        self._classifier_free, self._max_sequence_length = classifier_free, max_sequence_length

    @property
    def supported(self) -> bool:
        """Whether this pipeline's embeddings can be had apart from its images; others get plain prompts."""
        return self._source.index["_class_name"] in _ARGUMENTS

    def prepare(self, prompts: Collection[str]) -> None:
        """Encodes what is not known yet, then releases the text encoders."""
        if not self.supported:
            return
        wanted = sorted(set(prompts))
        unknown = [prompt for prompt in wanted if prompt not in self._store]
        has_negative = "negative_prompt_embeds" in _ARGUMENTS[self._source.index["_class_name"]]
        if self._classifier_free and has_negative and _EMPTY not in self._store:
            unknown = unknown or wanted[:1]  # any prompt brings that of the empty one along
        if not unknown:
            return
        encoders = self._source.load_encoders()
        _warn_of_long_prompts(encoders, unknown)
        for prompt in tqdm(unknown, desc="prompts", unit="prompt"):
            parts = self._encode(encoders, prompt)
            negative = {name: part for name, part in parts.items() if name.startswith("negative")}
            if negative and _EMPTY not in self._store:
                self._store[_EMPTY] = negative
            self._store[prompt] = {name: part for name, part in parts.items() if name not in negative}
        del encoders
        if self._source.device.type == "cuda":
            torch.cuda.empty_cache()

    def __call__(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Arguments for a batch of one image per prompt, on the device; prompts must have been prepared."""
        if not self.supported:
            return {"prompt": list(prompts)}
        negative = self._store[_EMPTY] if _EMPTY in self._store else {}
        each = [{**self._store[prompt], **negative} for prompt in prompts]
        return {name: torch.cat([one[name] for one in each]).to(self._source.device) for name in each[0]}

    def _encode(self, encoders: Any, prompt: str) -> Embedding:
        offered = {
            "prompt": prompt,
            "prompt_2": None,
            "prompt_3": None,
            "device": self._source.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": self._classifier_free,
            "max_sequence_length": self._max_sequence_length,
        }
        accepted = inspect.signature(encoders.encode_prompt).parameters
        with torch.no_grad():
            tensors = encoders.encode_prompt(**{k: v for k, v in offered.items() if k in accepted})
        names = _ARGUMENTS[type(encoders).__name__]
        return {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in zip(names, tensors, strict=False)  # Flux returns positions besides
            if tensor is not None
        }


def _warn_of_long_prompts(encoders: Any, prompts: Sequence[str]) -> None:
    tokenizers = [part for name, part in encoders.components.items() if name.startswith("tokenizer") and part]
    shortest = min(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
    limit = shortest.model_max_length
    long = [prompt for prompt in prompts if len(shortest(prompt).input_ids) > limit]
    if long:
        _log.warning(
            "%d prompts have more than %d tokens and are cut off by a text encoder, such as %r",
            len(long),
            limit,
            long[0],
        )
