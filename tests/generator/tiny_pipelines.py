"""Every family of pipelines with random weights and a few thousand parameters, tokenizers included."""

import diffusers as d
import torch
import transformers as t

SIZE = 32  # pixels
FAMILIES = ("sd15", "sdxl", "sd3", "flux")


def make_pipeline(family: str, seed: int = 0) -> d.DiffusionPipeline:
    torch.manual_seed(seed)
    pipeline = {"sd15": _sd15, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[family]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_classifier(num_classes: int, seed: int = 0) -> torch.nn.Module:
    """Images in [0, 1] → num_classes + 1 logits, smooth, so that finite differences can be trusted."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(48, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, num_classes + 1),
    )
    for parameter in network.parameters():
        parameter.data *= 3  # so that it is far from the uniform distribution, where entropy is flat
    return network.eval().requires_grad_(False)


def _tokenizer() -> t.CLIPTokenizer:
    characters = "abcdefghijklmnopqrstuvwxyz0123456789_(),-"
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return t.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _text_config(projection: int) -> t.CLIPTextConfig:
    return t.CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _vae(latent_channels: int, **config: float) -> d.AutoencoderKL:
    return d.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=SIZE,
        **config,
    )


def _unet(**config: object) -> d.UNet2DConditionModel:
    return d.UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )


def _sd15() -> d.StableDiffusionPipeline:
    return d.StableDiffusionPipeline(
        vae=_vae(4, scaling_factor=0.18215),
        text_encoder=t.CLIPTextModel(_text_config(32)).eval(),
        tokenizer=_tokenizer(),
        unet=_unet(cross_attention_dim=32),
        scheduler=d.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> d.StableDiffusionXLPipeline:
    unet = _unet(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )
    return d.StableDiffusionXLPipeline(
        vae=_vae(4, scaling_factor=0.13025),
        text_encoder=t.CLIPTextModel(_text_config(32)).eval(),
        text_encoder_2=t.CLIPTextModelWithProjection(_text_config(32)).eval(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=d.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sd3() -> d.StableDiffusion3Pipeline:
    transformer = d.SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return d.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(
            4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=t.CLIPTextModelWithProjection(_text_config(32)).eval(),
        tokenizer=_tokenizer(),
        text_encoder_2=t.CLIPTextModelWithProjection(_text_config(32)).eval(),
        tokenizer_2=_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux() -> d.FluxPipeline:
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    t5 = t.T5EncoderModel(t.T5Config(vocab_size=100, d_model=32, d_ff=37, num_layers=2, num_heads=4, d_kv=8))
    return d.FluxPipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        text_encoder=t.CLIPTextModel(_text_config(32)).eval(),
        tokenizer=_tokenizer(),
        text_encoder_2=t5.eval(),
        tokenizer_2=_tokenizer(),
        transformer=transformer,
        vae=_vae(
            4, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
    )
