"""Small models of the classes that stage 2 loads."""

import textwrap
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from exchange import files

# "Foreground" of this network is what is darker than the white paper around it.
_FOREGROUND_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class DarkConfig(PretrainedConfig):
    model_type = "dark"


class Dark(PreTrainedModel):
    config_class = DarkConfig

    def __init__(self, config):
        super().__init__(config)
        self.slope = torch.nn.Parameter(torch.tensor(-8.0))
        self.post_init()

    def forward(self, pixels):
        logits = self.slope * (pixels.mean(1, keepdim=True) - 1.5)
        return [torch.zeros_like(logits), logits]
"""


def save_foreground(folder: Path) -> str:
    """Writes a foreground model that brings code of its own, as BiRefNet does."""
    folder.mkdir(parents=True)
    (folder / "dark.py").write_text(textwrap.dedent(_FOREGROUND_CODE))
    files.write_json(
        str(folder / "config.json"),
        {
            "model_type": "dark",
            "architectures": ["Dark"],
            "auto_map": {"AutoConfig": "dark.DarkConfig", "AutoModelForImageSegmentation": "dark.Dark"},
        },
    )
    save_file({"slope": torch.tensor(-8.0)}, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return str(folder)


def save_clip(folder: Path) -> str:
    """Writes a CLIP with random weights and its processor."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["_"]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    crop = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=crop)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


CHAT = (
    "{% for message in messages %}user : {% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} bot :{% endif %}"
)


def save_judge(folder: Path, words: str, template: str | None = CHAT) -> str:
    """Writes a LLaVA with random weights that knows ``words``, and its processor with a chat template or none."""
    torch.manual_seed(0)
    known = dict.fromkeys(["<unk>", "<pad>", "<image>", *words.split()])
    model = models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "extra_special_tokens": {"image_token": "<image>"}}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=1, image_size=16, patch_size=4),
        text_config=LlamaConfig(
            **sizes,
            num_hidden_layers=2,
            vocab_size=len(known),
            max_position_embeddings=64,
            pad_token_id=1,
            bos_token_id=None,
            eos_token_id=None,
            initializer_range=1.0,
        ),
        image_token_index=2,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images,
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return str(folder)
