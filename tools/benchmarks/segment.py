"""Stage 2 in images per second: batches and threads against one image after the other.

The other side is the reference's procedure, written down here: for each image, the foreground network on that
image alone, text and two composites through CLIP, which keeps what a gradient would need, the mask saved; in the
end all masks are read again for their outlines. Both use the same models: on a CPU the embedded ones on pictures
of their size, on a GPU CLIP ViT-L/14 and a U-Net at 512 pixels, random weights.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from transformers import AutoModel, AutoModelForImageSegmentation, AutoProcessor, CLIPConfig, CLIPModel

from diSegmenter.annotate import MaskCleaner, outline
from diSegmenter.clip_score import ClipScorer
from diSegmenter.cut_out import InTurn, OneModel
from diSegmenter.foreground import MattingForeground
from diSegmenter.segment_round import RoundSegmenter
from exchange.config import REPOSITORY
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance
from exchange.shards import Shard
from tools.benchmarks import times_faster
from tools.digits import pictures, samples

_IMAGES, _REPEATS, _BATCH = 192, 5, 16
TARGET = 3.0
_VIT_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


def measure(device: str) -> dict[str, Any]:
    """Images per second of both sides, medians of turns taken alternately."""
    models = _models(torch.device(device))
    images = _images(models.input_size)
    categories = [1 + number % samples.NUM_CATEGORIES for number in range(_IMAGES)]
    instances = [
        GeneratedInstance(RunLayout.instance_name(0, c, i), c, i, 0, "", "", False)
        for i, c in enumerate(categories)
    ]
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    for _ in range(_REPEATS):
        for side, run in (("other", _one_by_one), ("ours", _batched)):
            with tempfile.TemporaryDirectory() as folder:
                layout = RunLayout(folder)
                os.makedirs(layout.raw(""))
                os.makedirs(layout.segmented(""))
                for instance, image in zip(instances, images, strict=True):
                    Image.fromarray(image).save(layout.raw(instance.file))
                started = time.perf_counter()
                run(layout, instances, models)
                seconds[side].append(time.perf_counter() - started)
    own, other = (statistics.median(seconds[side]) for side in ("ours", "other"))
    return {
        "ours": _IMAGES / own,
        "other": _IMAGES / other,
        "unit": "images per second",
        **times_faster(own, other, TARGET),
    }


@dataclass(frozen=True)
class _Models:
    foreground: nn.Module
    clip: nn.Module
    processor: Any
    input_size: int
    prompts: dict[int, str]
    device: torch.device


def _models(device: torch.device) -> _Models:
    assets = REPOSITORY / "assets" / "digits"
    foreground = AutoModelForImageSegmentation.from_pretrained(assets / "foreground", trust_remote_code=True)
    clip, processor = (
        AutoModel.from_pretrained(assets / "clip"),
        AutoProcessor.from_pretrained(assets / "clip"),
    )
    input_size = pictures.SIZE
    if device.type != "cpu":
        text = clip.config.text_config.to_dict() | {"projection_dim": 768}
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=_VIT_L_14, projection_dim=768))
        processor.image_processor.size = {"shortest_edge": 224}
        processor.image_processor.crop_size = {"height": 224, "width": 224}
        input_size = 512
    prompts = {c: f"a photo of {samples.category_name(c)}" for c in range(1, samples.NUM_CATEGORIES + 1)}
    models = (model.float().to(device).eval() for model in (foreground, clip))
    return _Models(*models, processor, input_size, prompts, device)


def _images(size: int) -> list[np.ndarray]:
    drawn = pictures.with_masks(samples.split()["val"], _IMAGES, np.random.default_rng(0))
    return [np.asarray(Image.fromarray(picture).resize((size, size))) for picture, _, _ in drawn]


def _batched(layout: RunLayout, instances: list[GeneratedInstance], models: _Models) -> None:
    cut_out = OneModel(
        "digits",
        InTurn(MattingForeground(models.foreground, (models.input_size,) * 2, models.device)),
        MaskCleaner(128, True),
        InTurn(ClipScorer(models.clip, models.processor, models.prompts, models.device)),
    )
    segment = RoundSegmenter(layout, cut_out, batch_size=_BATCH, workers=4, shard=Shard())
    segment(0, [(len(instances), instances)])


def _one_by_one(layout: RunLayout, instances: list[GeneratedInstance], models: _Models) -> None:
    side = (models.input_size, models.input_size)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    prepare = transforms.Compose(
        [transforms.Resize(side), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    for instance in instances:
        with Image.open(layout.raw(instance.file)) as image:
            cutout = image.convert("RGB")
        with torch.no_grad():
            logits = models.foreground(prepare(cutout)[None].to(models.device))[-1]
        mask = transforms.functional.to_pil_image(logits.sigmoid().cpu()[0, 0]).resize(cutout.size)
        cutout.putalpha(mask)
        composites = [
            Image.alpha_composite(Image.new("RGBA", cutout.size, paper), cutout).convert("RGB")
            for paper in ("white", "black")
        ]
        prompt = models.prompts[instance.category_id]
        inputs = models.processor(text=[prompt], images=composites, return_tensors="pt", padding=True)
        models.clip(**inputs.to(models.device)).logits_per_image.max().item()
        mask.save(layout.segmented(instance.file))
    for instance in instances:
        with Image.open(layout.segmented(instance.file)) as image:
            outline(np.asarray(image))
