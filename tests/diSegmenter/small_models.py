"""Small models of the classes that stage 2 loads."""

import textwrap
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

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
    layers = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {name: text[name] for name in layers} | {"image_size": 16, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    crop = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=crop)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)
