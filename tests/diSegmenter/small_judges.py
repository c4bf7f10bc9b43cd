"""Small models of several families that answer questions about pictures, with random weights, and their processors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
)

_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
_TEXT = _SIZES | {"num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
_TEXT |= {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.5}


def chat(image: str = "<image>") -> str:
    """A template of chats, in which ``image`` stands for a picture."""
    return (
        "{% for message in messages %}user : {% for part in message['content'] %}"
        f"{{{{ '{image}' if part['type'] == 'image' else part['text'] }}}}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} bot :{% endif %}"
    )


def _tokenizer(words: str, marks: Sequence[str] = ("<image>",)) -> PreTrainedTokenizerFast:
    """One that knows ``words`` and ``marks``, of which the first stands for an image."""
    known = dict.fromkeys(["<unk>", "<pad>", *marks, "<s>", *words.split()])
    model = models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"mark_{number}": mark for number, mark in enumerate(marks)} | {"image_token": marks[0]}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        extra_special_tokens=special,
    )


def llava(words: str, template: str | None = None) -> tuple[nn.Module, Any]:
    """All pictures have 16 tokens; ``template``: None for a processor that knows no chats."""
    tokenizer = _tokenizer(words)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_SIZES, num_hidden_layers=1, image_size=16, patch_size=4),
        text_config=LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
        image_token_index=2,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    tokens = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(images, tokenizer, **tokens, chat_template=template)
    return LlavaForConditionalGeneration(config), processor


def qwen(words: str) -> tuple[nn.Module, Any]:
    """The larger a picture, the more tokens."""
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = _tokenizer(words, marks)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(
        text_config=_TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [0]},
        image_token_id=2,
        video_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
    )
    images, videos = Qwen2VLImageProcessor(min_pixels=28 * 28), Qwen2VLVideoProcessor()
    template = chat("<|vision_start|><|image_pad|><|vision_end|>")
    processor = Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=template)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def paligemma(words: str) -> tuple[nn.Module, Any]:
    """It looks both ways in its prompt, and knows no chats."""
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, _tokenizer(words))
    text = _TEXT | {"model_type": "gemma", "head_dim": 8, "vocab_size": len(processor.tokenizer)}
    vision = _SIZES | {"model_type": "siglip_vision_model", "num_hidden_layers": 1, "image_size": 28}
    config = PaliGemmaConfig(
        text_config=text,
        vision_config=vision | {"patch_size": 14, "vision_use_head": False},
        image_token_index=2,
        projection_dim=16,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def idefics(words: str) -> tuple[nn.Module, Any]:
    """SmolVLM's family: a picture is cut into tiles, small ones into fewer."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer = _tokenizer(words, marks)
    vision = _SIZES | {"num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    text = _TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)}
    config = Idefics3Config(image_token_id=2, scale_factor=2, text_config=text, vision_config=vision)
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=chat())
    return Idefics3ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[str], tuple[nn.Module, Any]]] = {
    "LLaVA": llava,
    "Qwen-VL": qwen,
    "PaliGemma": paligemma,
    "SmolVLM": idefics,
}


def save_judge(folder: Path, words: str, template: str | None = None) -> str:
    """Writes a LLaVA that knows ``words``, in bfloat16 as most are published, with its processor."""
    torch.manual_seed(0)
    model, processor = llava(words, template)
    for part in (model.bfloat16(), processor):
        part.save_pretrained(folder)
    return str(folder)
