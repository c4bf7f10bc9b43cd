"""Trains the small CLIP that scores a picture of a digit against ``a photo of {category}``."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm
from transformers import (
    BatchEncoding,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from tools.digits import pictures, samples
from tools.digits.optimise import optimising
from tools.digits.prompts import MAX_TOKENS, TEMPLATES, build_tokenizer

_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def build() -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP with 64-pixel images and 16-token texts, random weights, and its processor."""
    tokenizer = build_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=64,
        pad_token_id=tokenizer.pad_token_id,
        **ends,
    )
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=pictures.SIZE,
        patch_size=8,
        projection_dim=64,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    size = {"height": pictures.SIZE, "width": pictures.SIZE}
    images = CLIPImageProcessor(
        size={"shortest_edge": pictures.SIZE}, crop_size=size, image_mean=_MEAN, image_std=_STD
    )
    return CLIPModel(config), CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def make_pictures(part: samples.Samples, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Normalised pictures (count, 3, 64, 64) on plain backgrounds, a third black; category ids (count,)."""
    images, categories = [], []
    drawn = pictures.with_masks(part, count, rng, share_on_photographs=0)
    for index, (picture, coverage, category) in enumerate(drawn):
        if index % 3 == 0:
            picture = np.rint(picture * (coverage[..., None] > 0.05)).astype(np.uint8)
        images.append(picture)
        categories.append(category)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (pixels - mean) / std, torch.tensor(categories)


def category_codes(width: int) -> Tensor:
    """Unit vectors (30, width) for the categories: 1/2 is the cosine of two that share digit or ink, else 0."""
    basis = torch.linalg.qr(torch.randn(width, width)).Q
    digits, inks = len(samples.WORDS), len(samples.INKS)
    pairs = [basis[digit] + basis[digits + ink] for digit in range(digits) for ink in range(inks)]
    return F.normalize(torch.stack(pairs), dim=1)


def train_text(model: CLIPModel, texts: list[BatchEncoding], codes: Tensor, steps: int) -> None:
    """Teaches the text tower the categories' codes, whatever the template."""
    optimizer = torch.optim.AdamW(_parameters(model, "text"), lr=1e-3, weight_decay=0.01)
    for step in tqdm(range(steps), "CLIP text"):
        embeddings = F.normalize(
            model.text_projection(model.text_model(**texts[step % len(texts)]).pooler_output), dim=1
        )
        loss = (embeddings - codes).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(steps: int, seed: int) -> tuple[CLIPModel, CLIPProcessor]:
    """First the text tower, then the image tower against the locked texts.

    Trained together from random weights the two agree on inks alone for thousands of steps: as long as images
    do not tell digits apart, texts gain by not doing so either.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, processor = build()
    prompts = [
        [t.format(samples.category_name(c + 1)) for c in range(samples.NUM_CATEGORIES)] for t in TEMPLATES
    ]
    texts = [processor.tokenizer(p, padding="max_length", return_tensors="pt") for p in prompts]
    codes = category_codes(model.config.projection_dim)
    train_text(model, texts, codes, steps=400)
    images, categories = make_pictures(samples.split()["generation"], 24_000, rng)
    for step in optimising(_parameters(model, "vision"), steps, 1e-3, 0.05, "CLIP images", max_norm=1.0):
        batch = torch.from_numpy(rng.integers(len(images), size=64))
        embeddings = model.visual_projection(model.vision_model(images[batch]).pooler_output)
        logits = 20 * F.normalize(embeddings, dim=1) @ codes.T
        step(F.cross_entropy(logits, categories[batch] - 1))
    return model.eval(), processor


def _parameters(model: CLIPModel, tower: str) -> list[torch.nn.Parameter]:
    projection = {"text": "text_projection", "vision": "visual_projection"}[tower]
    return [p for name, p in model.named_parameters() if name.startswith((f"{tower}_model", projection))]


@torch.no_grad()
def measure(model: CLIPModel, processor: CLIPProcessor) -> dict[str, float]:
    """AUC of right against wrong categories and accuracy, on digits that no model was trained on."""
    images, categories = make_pictures(samples.split()["val"], 1500, np.random.default_rng(1))
    names = [f"a photo of {samples.category_name(c + 1)}" for c in range(samples.NUM_CATEGORIES)]
    text = processor.tokenizer(names, padding="max_length", return_tensors="pt")
    output = model(pixel_values=images, **text)
    cosines = (output.image_embeds @ output.text_embeds.T).numpy()
    right = np.eye(samples.NUM_CATEGORIES, dtype=bool)[categories.numpy() - 1]
    return {
        "auc": float(roc_auc_score(right.ravel(), cosines.ravel())),
        "accuracy": float((cosines.argmax(1) == categories.numpy() - 1).mean()),
        "score_of_right_5_percent_quantile": float(np.quantile(100 * cosines[right], 0.05)),
        "score_of_wrong_95_percent_quantile": float(np.quantile(100 * cosines[~right], 0.95)),
    }
