"""Guided drawing against drawing unguided: seconds per image, by mode and batch.

The headline is what guidance in mode "exact" costs: the largest batch, guided, as a multiple of the same batch not
guided, both in turn in one run. One image at a time, guided, is told beside it: the reference's way to draw. On a CPU
the seconds are the processor's (those of the clock count what else runs there), on a GPU those of the clock. Random
weights: on a CPU the embedded models' sizes, on a GPU those of Stable Diffusion 3 medium at 512 pixels and of the
ResNet-50 segmenter for LVIS, in bfloat16 (the segmenter in float32), where peak memory is told too.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from detectron2_ext.modeling.builder import build_detector
from detectron2_ext.modeling.feedback_network import FeedbackNetwork
from exchange.config import REPOSITORY, load_config
from generator.guidance import MODES, Guidance, guided
from tools.benchmarks import times_as_much
from tools.digits.train_sd3 import build_autoencoder, build_transformer

LIMIT = 1.5
_STEPS, _EVERY, _CFG_SCALE = 30, 5, 5.0
_REPEATS = 3


@dataclass
class _Workload:
    """A pipeline without text encoders, a classifier and embeddings (N, …) of N images."""

    pipeline: StableDiffusion3Pipeline
    classifier: FeedbackNetwork
    embeddings: dict[str, Tensor]
    size: int
    batches: tuple[int, ...]


def measure(device: str) -> dict[str, Any]:
    """Medians of three turns, in which each way draws the same images."""
    place = torch.device(device)
    torch.manual_seed(0)
    work = _small() if place.type == "cpu" else _large(place)
    count = max(work.batches)
    ways = [(f"{mode} {batch}", mode, batch) for batch in work.batches for mode in ("off", *MODES)]
    clock = time.process_time if place.type == "cpu" else time.perf_counter
    _draw(work, "exact", 1, 1)  # warm-up
    times: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    peaks: dict[str, float] = {}
    images: dict[str, Tensor] = {}
    for _ in range(_REPEATS):
        for name, mode, batch in ways:
            if place.type == "cuda":
                torch.cuda.reset_peak_memory_stats(place)
            started = clock()
            images[name] = _draw(work, mode, batch, count)
            times[name].append((clock() - started) / count)
            if place.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(place) / 2**30
    seconds = {name: statistics.median(values) for name, values in times.items()}
    own, other = seconds[f"exact {count}"], seconds[f"off {count}"]
    difference = (images[f"exact {count}"] - images["exact 1"]).abs().max().item()
    result = {
        "ours": own,
        "other": other,
        "unit": "seconds of the processor" if place.type == "cpu" else "seconds",
        **times_as_much(own, other, LIMIT),
        "ways": seconds,
        "largest_pixel_difference_from_one_by_one": difference,
    }
    return result | ({"peak_memory_gib": peaks} if peaks else {})


def _draw(work: _Workload, mode: str, batch: int, count: int) -> Tensor:
    """``count`` images (count, 3, H, W) in [0, 1], drawn ``batch`` at a time."""
    device = work.pipeline.device
    images = []
    for start in range(0, count, batch):
        rows = slice(start, start + batch)
        call = {
            **{name: value[rows] for name, value in work.embeddings.items()},
            "generator": [torch.Generator().manual_seed(start + i) for i in range(batch)],
            "height": work.size,
            "width": work.size,
            "num_inference_steps": _STEPS,
            "guidance_scale": _CFG_SCALE,
            "output_type": "pt",
        }
        if mode == "off":
            images.append(work.pipeline(**call).images)
            continue
        with guided(
            work.pipeline,
            Guidance(work.classifier, every=_EVERY, mode=mode),
            torch.zeros(batch, dtype=torch.int64, device=device),
        ):
            images.append(work.pipeline(**call).images)
    return torch.cat(images).cpu()  # waits for the device


def _workload(
    transformer: SD3Transformer2DModel,
    autoencoder: AutoencoderKL,
    config: str,
    tokens: int,
    size: int,
    batches: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> _Workload:
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        vae=autoencoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(
            ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        ),
    ).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    cfg = load_config(str(REPOSITORY / config))
    classifier = FeedbackNetwork(build_detector(cfg)).to(device).eval().requires_grad_(False)
    words = (max(batches), tokens, transformer.config.joint_attention_dim)
    pooled = (max(batches), transformer.config.pooled_projection_dim)
    shapes = {
        "prompt_embeds": words,
        "negative_prompt_embeds": words,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": pooled,
    }
    embeddings = {name: torch.randn(shape).to(device, dtype) for name, shape in shapes.items()}
    return _Workload(
        pipeline,
        classifier,
        embeddings,
        size,
        batches,
    )


def _small() -> _Workload:
    """The embedded models' sizes."""
    autoencoder = build_autoencoder()
    autoencoder.register_to_config(shift_factor=0.0)  # which its training would find
    return _workload(
        build_transformer(text_width=128, pooled_width=128),
        autoencoder,
        "configs/digits/MRCA_digits.yaml",
        tokens=17,
        size=64,
        batches=(1, 8, 32),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def _large(device: torch.device) -> _Workload:
    """Stable Diffusion 3 medium (2 billion parameters) at 512 pixels."""
    with torch.device(device):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            caption_projection_dim=1536,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        ).to(torch.bfloat16)
        autoencoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return _workload(
        transformer,
        autoencoder,
        "configs/MRCA/MRCA_R50.yaml",
        tokens=333,
        size=512,
        batches=(1, 4, 8, 16),
        device=device,
        dtype=torch.bfloat16,
    )
