"""Trains the small Stable Diffusion 3: autoencoder, then diffusion transformer, conditioned by the small CLIP."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor, CLIPTextModelWithProjection

from tools.digits import pictures, samples
from tools.digits.classifier import DigitClassifier
from tools.digits.optimise import optimising

_BATCH = 48
_UNCONDITIONAL = 0.1
# Without T5 the pipeline appends this many zero tokens (``max_sequence_length``): 1 where speed counts,
# 256 by default. The transformer sees mostly the former in training, and the latter often enough.
_ZERO_TOKENS = (1, 256)
_SHARE_OF_LONG = 0.04


def build_autoencoder() -> AutoencoderKL:
    """64 × 64 pixels to 16 × 16 latents of 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=pictures.SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_transformer(text_width: int, pooled_width: int) -> SD3Transformer2DModel:
    """The smallest MMDiT that draws these digits well."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=text_width,
        caption_projection_dim=128,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=16,
    )


def make_pictures(part: samples.Samples, count: int, seed: int) -> tuple[Tensor, list[str], Tensor]:
    """Pictures (count, 3, 64, 64) in [-1, 1], their prompts, their category ids (count,)."""
    drawn = list(pictures.with_prompts(part, count, np.random.default_rng(seed)))
    pixels = torch.from_numpy(np.stack([picture for picture, _, _ in drawn])).permute(0, 3, 1, 2)
    return (
        pixels.float() / 127.5 - 1,
        [prompt for _, prompt, _ in drawn],
        torch.tensor([c for _, _, c in drawn]),
    )


def train_autoencoder(images: Tensor, steps: int, seed: int) -> AutoencoderKL:
    """Reconstruction through slightly noisy latents, which are then scaled to mean 0 and deviation 1.

    The noise is small and fixed: the posterior's own starts at deviation 1, and a decoder this narrow then
    learns nothing but backgrounds for thousands of steps.
    """
    torch.manual_seed(seed)
    model = build_autoencoder().to(memory_format=torch.channels_last)
    for step in optimising([*model.parameters()], steps, 3e-3, 0.0, "autoencoder", max_norm=1.0):
        batch = images[torch.randint(len(images), (16,))].contiguous(memory_format=torch.channels_last)
        latents = model.encode(batch).latent_dist.mode()
        reconstruction = model.decode(latents + 0.1 * torch.randn_like(latents)).sample
        error = (reconstruction - batch).abs().mean()
        step(error + F.mse_loss(reconstruction, batch) + 1e-3 * latents.square().mean())
    model.eval()
    latents = encode(model, images[:2000])
    model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return model


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor) -> Tensor:
    """Modes of the latents, (N, 4, 16, 16), unscaled."""
    return torch.cat([model.encode(chunk).latent_dist.mode() for chunk in images.split(250)])


def assemble(
    clip: CLIPModel, processor: CLIPProcessor, autoencoder: AutoencoderKL
) -> StableDiffusion3Pipeline:
    """The pipeline with an untrained transformer. Both text encoders are the CLIP's; there is no T5."""
    encoder = CLIPTextModelWithProjection(clip.config.text_config)
    encoder.text_model.load_state_dict(clip.text_model.state_dict())
    encoder.text_projection.load_state_dict(clip.text_projection.state_dict())
    width, pooled = 2 * clip.config.text_config.hidden_size, 2 * clip.config.projection_dim
    return StableDiffusion3Pipeline(
        transformer=build_transformer(width, pooled),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=autoencoder,
        text_encoder=encoder.eval(),
        tokenizer=processor.tokenizer,
        text_encoder_2=copy.deepcopy(encoder).eval(),
        tokenizer_2=processor.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


@torch.no_grad()
def encode_prompts(pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Text embeddings (N, 16, W) without the zero tokens, and pooled ones (N, P)."""
    embeddings, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=1
    )
    return embeddings[:, :-1], pooled


def train_transformer(
    pipeline: StableDiffusion3Pipeline, images: Tensor, prompts: list[str], steps: int, seed: int
) -> None:
    """Flow matching with logit-normal noise levels (Esser et al. 2024, section 3.1); keeps the averaged weights."""
    torch.manual_seed(seed)
    model, vae = pipeline.transformer, pipeline.vae
    latents = (encode(vae, images) - vae.config.shift_factor) * vae.config.scaling_factor
    distinct = sorted(set(prompts)) + [""]
    texts, pooled = encode_prompts(pipeline, distinct)
    number = {prompt: index for index, prompt in enumerate(distinct)}
    prompt_of = torch.tensor([number[prompt] for prompt in prompts])
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    model.train()
    learning = optimising([*model.parameters()], steps, 1e-3, 0.01, "transformer", warm_up=0.05, max_norm=1.0)
    for step in learning:
        long = torch.rand(()) < _SHARE_OF_LONG
        batch = torch.randint(len(latents), (_BATCH // 4 if long else _BATCH,))
        clean, noise = latents[batch], torch.randn(len(batch), *latents.shape[1:])
        sigma = torch.sigmoid(torch.randn(len(batch)))
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        asked = torch.where(torch.rand(len(batch)) < _UNCONDITIONAL, len(distinct) - 1, prompt_of[batch])
        text = F.pad(texts[asked], (0, 0, 0, _ZERO_TOKENS[int(long)]))
        velocity = model(noisy, text, pooled[asked], 1000 * sigma, return_dict=False)[0]
        step(F.mse_loss(velocity, noise - clean))
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    model.eval()


@torch.no_grad()
def measure(pipeline: StableDiffusion3Pipeline, images: Tensor, count: int = 500) -> dict[str, float]:
    """Reconstruction error, and how often a classifier of real digits sees what was asked for in unguided samples."""
    reconstruction = pipeline.vae.decode(encode(pipeline.vae, images[:200])).sample
    classify, right_digit, right_ink = DigitClassifier(), 0, 0
    pipeline.set_progress_bar_config(disable=True)
    categories = [index % samples.NUM_CATEGORIES + 1 for index in range(count)]
    for start in tqdm(range(0, count, 50), "classifying samples"):
        asked = categories[start : start + 50]
        drawn = pipeline(
            [f"a photo of {samples.category_name(category)}" for category in asked],
            num_inference_steps=30,
            guidance_scale=5.0,
            height=pictures.SIZE,
            width=pictures.SIZE,
            max_sequence_length=_ZERO_TOKENS[0],
            generator=torch.Generator().manual_seed(start),
            output_type="np",
        ).images
        for category, picture in zip(asked, drawn, strict=True):
            digit, ink = classify(np.rint(picture * 255).astype(np.uint8))
            right_digit += digit == (category - 1) // 3
            right_ink += ink == (category - 1) % 3
    return {
        "autoencoder_mean_absolute_error": (reconstruction - images[:200]).abs().mean().item() / 2,
        "asked_digit_drawn": right_digit / count,
        "asked_ink_drawn": right_ink / count,
    }
