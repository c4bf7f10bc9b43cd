"""The parts of stage 1 from the configuration: the only place that knows its keys."""

import math
import reprlib
from collections.abc import Iterable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from exchange import files
from exchange.config import at_least, default_of, from_repository, limits
from exchange.errors import UserError
from exchange.feedback import Feedback
from exchange.run import run_layout
from generator.allocation import AllocationRule
from generator.criteria import CRITERIA
from generator.guidance import Classifier, Guidance
from generator.pipelines import PipelineSource, Tuning, load_tiny_autoencoder
from generator.plan import Model, PromptBook, Sentences
from generator.prompt_embeddings import Embedding, EmbeddingFolder, PromptEmbeddings
from generator.prompt_files import read_prompts
from generator.sampling import Sampler, Samplers, Sampling


def build_allocation_rule(cfg: CfgNode) -> AllocationRule:
    """How images are divided among classes; UserError if the bounds cannot be kept."""
    node = cfg.GENERATOR
    try:
        return AllocationRule(
            per_class=node.PER_CLASS,
            balanced=node.BALANCED,
            frequency_exponent=node.FREQUENCY_EXPONENT,
            drift_exponent=node.DRIFT_EXPONENT,
            ap_mode=node.AP_MODE,
            ap_exponent=node.AP_EXPONENT,
            minimum=node.MIN_PER_CLASS,
            maximum=node.MAX_PER_CLASS or None,
        )
    except ValueError as error:
        raise UserError(
            f"{error}: correct PER_CLASS, MIN_PER_CLASS, MAX_PER_CLASS, AP_MODE or the exponents in GENERATOR"
        ) from error


def build_prompt_book(cfg: CfgNode, categories: Iterable[str]) -> PromptBook:
    """Templates, how names are written in them, and the sentences of ``categories`` (names), if there are files."""
    node, sentences = cfg.GENERATOR, None
    if node.PROMPT_FOLDER:
        of_category = read_prompts(from_repository(node.PROMPT_FOLDER), categories)
        sentences = Sentences(of_category, node.PROMPT_SHARE)
    return PromptBook(tuple(node.TEMPLATES), node.NAMES, sentences)


def chosen_models(cfg: CfgNode) -> list[Model]:
    """What draws: GENERATOR.MODELS, or the one of GENERATOR.MODEL; UserError for entries that are none."""
    node = cfg.GENERATOR
    if not node.MODELS:
        return [Model(node.MODEL, 1.0, node.REVISION)]
    if node.MODEL not in ("", default_of("GENERATOR.MODEL")):
        raise UserError(
            f"GENERATOR.MODEL {node.MODEL!r} and GENERATOR.MODELS both say what draws: leave one of them out, or set "
            "MODEL to '' where another YAML gives it"
        )
    models = [_model(entry, node.REVISION) for entry in node.MODELS]
    names = [model.name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"GENERATOR.MODELS names {twice!r} twice: add its shares up")
    return models


def _model(entry: Any, revision: str) -> Model:
    """The entry [name, share] or [name, share, revision] of GENERATOR.MODELS."""
    if isinstance(entry, list) and len(entry) in (2, 3):
        name, share, own = (*entry, revision)[:3]
        is_share = type(share) in (int, float) and 0 < share < math.inf
        if name and isinstance(name, str) and is_share and isinstance(own, str):
            return Model(name, float(share), own)
    raise UserError(
        f"GENERATOR.MODELS holds {reprlib.repr(entry)}: it takes entries [name, share] with a share above 0, or "
        "[name, share, revision]"
    )


def load_classifier(cfg: CfgNode, feedback: Feedback, device: torch.device) -> Classifier:
    """The segmenter whose checkpoint the feedback names, in float32; UserError if the file is not that one.

    Where there is no such file, because the run's folder was moved, it is the one of that name in the run.
    """
    from detectron2_ext.modeling.builder import load_feedback_network  # the one bridge to stage 3

    path = feedback.checkpoint
    inside = files.join(run_layout(cfg).train_dir, path.rsplit("/", 1)[-1])
    if not files.exists(path) and files.exists(inside):
        path = inside
    return load_feedback_network(cfg, path, sha256=feedback.checkpoint_sha256, use_ema=True, device=device)


def load_gradient_decoder(cfg: CfgNode, device: torch.device) -> nn.Module | None:
    """The distilled decoder (AutoencoderTiny) for the gradient pass, if one is set."""
    node = cfg.GENERATOR
    if not node.GUIDANCE_DECODER:
        return None
    return load_tiny_autoencoder(node.GUIDANCE_DECODER, node.DTYPE, device)


def build_guidance(cfg: CfgNode, classifier: Classifier, decoder: nn.Module | None = None) -> Guidance:
    """How images are steered; UserError for a setting that there is not."""
    node = cfg.GENERATOR
    if node.CRITERION not in CRITERIA:
        raise UserError(f"GENERATOR.CRITERION is one of {', '.join(CRITERIA)}, not {node.CRITERION!r}")
    if cfg.MODEL.META_ARCHITECTURE == "EmbedRCNN" and node.GUIDANCE_SCALE > 0:
        raise UserError(
            "MODEL.META_ARCHITECTURE EmbedRCNN returns a feature, which is not uncertain of any class: draw with "
            "CustomRCNN or FeedbackRCNN, or set GENERATOR.GUIDANCE_SCALE to 0"
        )
    return Guidance(
        classifier,
        CRITERIA[node.CRITERION],
        scale=node.GUIDANCE_SCALE,
        every=node.GUIDANCE_EVERY,
        sigmas=limits(cfg, "GENERATOR.GUIDANCE_SIGMAS"),
        mode=node.GUIDANCE_MODE,
        chunk=at_least(0, cfg, "GENERATOR.GUIDANCE_CHUNK"),
        decoder=decoder,
    )


def build_sampler(cfg: CfgNode, device: torch.device, limit: int) -> Samplers:
    """What draws batches, at most ``limit`` images at once; models are loaded when they are first needed."""
    return Samplers({model.name: _sampler(cfg, model, device, limit) for model in chosen_models(cfg)})


def _sampler(cfg: CfgNode, model: Model, device: torch.device, limit: int) -> Sampler:
    node = cfg.GENERATOR
    tuning = Tuning(node.GUIDANCE_CHECKPOINTING, node.CHANNELS_LAST, node.COMPILE)
    source = PipelineSource(model.name, model.revision, node.DTYPE, device, tuning)
    store: dict[str, Embedding] | EmbeddingFolder = {}
    if node.EMBEDDING_CACHE:
        key = f"{model.name} {model.revision} {node.DTYPE} {node.CFG_SCALE > 1} {node.MAX_SEQUENCE_LENGTH}"
        key += f" {source.text_files}"
        store = EmbeddingFolder(from_repository(node.EMBEDDING_CACHE), key)
    embeddings = PromptEmbeddings(source, node.CFG_SCALE > 1, node.MAX_SEQUENCE_LENGTH, store)
    size, steps = (at_least(1, cfg, f"GENERATOR.{name}") for name in ("IMAGE_SIZE", "STEPS"))
    if size % 8:  # pixels to a latent, which a pipeline rounds down or stumbles over
        raise UserError(f"GENERATOR.IMAGE_SIZE is {size}: it is a multiple of 8")
    sampling = Sampling(size, steps, node.CFG_SCALE)
    return Sampler(source, embeddings, sampling, limit)
