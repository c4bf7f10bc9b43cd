"""Small models of the classes that stage 2 loads, and a run folder with generated images, all made here."""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from exchange import files
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, Manifest, write_manifest
from exchange.pool_index import PoolInstance

CATEGORIES = [
    {
        "id": 3,
        "name": "red disc",
        "frequency": "r",
        "image_count": 2,
        "instance_count": 2,
        "synset": "disc.n.01",
    },
    {
        "id": 7,
        "name": "blue_disc",
        "frequency": "f",
        "image_count": 200,
        "instance_count": 300,
        "def": "a disc",
    },
]

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
    from safetensors.torch import save_file

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


def disc_image(
    radius: int, size: tuple[int, int] = (40, 48), ink: tuple[int, int, int] = (150, 20, 20)
) -> np.ndarray:
    """A disc on white: uint8 (H, W, 3)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside = (rows - size[0] // 2) ** 2 + (columns - size[1] // 2) ** 2 <= radius**2
    return np.where(inside[..., None], ink, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def generate(
    layout: RunLayout, round_: int, count: int = 6, shard: int = 0, num_shards: int = 1, complete: bool = True
) -> list[GeneratedInstance]:
    """Writes what stage 1 would write: discs of different size, and the shard's manifest."""
    instances = []
    for number in range(shard, count, num_shards):
        category = CATEGORIES[number % 2]["id"]
        name = layout.instance_name(round_, category, number)
        files.write_bytes(layout.raw(name), png(disc_image(5 + number % 12)))
        instances.append(GeneratedInstance(name, category, number, number, "a photo of {}", "a photo", False))
    asked = {
        category["id"]: sum(i.category_id == category["id"] for i in instances) for category in CATEGORIES
    }
    write_manifest(layout, Manifest(round_, shard, num_shards, "tiny", complete, asked, instances, 1.0))
    return instances


def pool_instance(round_: int, category_id: int, number: int, **values: Any) -> PoolInstance:
    """A kept instance as stage 2 writes it, with ``values`` in place of some of its fields."""
    name = RunLayout.instance_name(round_, category_id, number)
    fields = {
        "file": name,
        "round": round_,
        "category_id": category_id,
        "width": 48,
        "height": 40,
        "bbox": [3, 4, 10, 11],
        "area": 90,
        "segmentation": [[3, 4, 12, 4, 12, 14]],
        "objects": 1,
        "clip_white": 0.0,
        "clip_black": 30.0,
        "reason": "",
        "seed": number,
        "model": "tiny",
        "prompt": "a photo",
        "cutout": RunLayout.cutout_name(name),
    }
    return PoolInstance(**fields | values)


@pytest.fixture(scope="session")
def foreground_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_foreground(tmp_path_factory.mktemp("models") / "foreground")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunLayout(str(tmp_path / "run"))
