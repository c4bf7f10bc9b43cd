"""The CLIP score: how much a cut-out looks like what was asked for (filter.py holds it against the threshold)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoProcessor

from diSegmenter.pretrained import load_pretrained

_TEXTS_AT_ONCE = 64


class ClipScorer:
    """Scores cut-outs against the name of their category.

    Args:
        model: has ``get_text_features`` and ``get_image_features`` (CLIP, SigLIP).
        processor: its processor, with ``tokenizer`` and ``image_processor``.
        prompts: the text of each category id.
    """

    def __init__(
        self, model: nn.Module, processor: Any, prompts: Mapping[int, str], device: torch.device
    ) -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor = processor
        self._device = device
        self._text_features = self._features_of(prompts)

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[np.ndarray], alphas: Sequence[np.ndarray], category_ids: Sequence[int]
    ) -> np.ndarray:
        """100 x cosine of each cut-out on white and on black with its text: float32 (N, 2).

        Args:
            images: uint8 (H, W, 3 or more) each.
            alphas: uint8 (H, W) each.
        """
        pictures = [
            picture
            for image, alpha in zip(images, alphas, strict=True)
            for picture in self._composites(image, alpha)
        ]
        inputs = self._processor.image_processor(images=pictures, return_tensors="pt").to(self._device)
        features = _unit_vectors(self._model.get_image_features(**inputs))
        image_features = features.view(len(images), 2, -1)
        text_features = torch.stack([self._text_features[category_id] for category_id in category_ids])
        return (100 * (image_features * text_features[:, None]).sum(-1)).cpu().numpy()

    @torch.inference_mode()
    def _features_of(self, prompts: Mapping[int, str]) -> dict[int, torch.Tensor]:
        """Of all texts, in batches that no image has a part in: a score does not hang on when it is asked for."""
        # SigLIP was trained on texts padded to full length, CLIP masks what is padded.
        padding = "max_length" if self._model.config.model_type.startswith("siglip") else "longest"
        texts, features = list(prompts.values()), []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = self._processor.tokenizer(
                texts[start : start + _TEXTS_AT_ONCE], padding=padding, truncation=True, return_tensors="pt"
            ).to(self._device)
            features += _unit_vectors(self._model.get_text_features(**tokens))
        return dict(zip(prompts, features, strict=True))

    def _composites(self, image: np.ndarray, alpha: np.ndarray) -> torch.Tensor:
        """The cut-out on white and on black: uint8 (2, 3, H, W)."""
        pixels = torch.from_numpy(image[..., :3].copy()).to(self._device).permute(2, 0, 1)
        opacity = torch.from_numpy(alpha).to(self._device).float() / 255
        on_black = opacity * pixels
        on_white = on_black + (1 - opacity) * 255
        return torch.stack([on_white, on_black]).round().byte()


def _unit_vectors(output: Any) -> torch.Tensor:
    """(N, D), in the weights' float32 on any device: half precision would decide otherwise near the threshold."""
    features: torch.Tensor = F.normalize(output.pooler_output, dim=-1)
    return features


def load_clip_scorer(
    name: str, revision: str, prompts: Mapping[int, str], device: torch.device
) -> ClipScorer:
    """Loads the model ``name``, a folder or a hub name; raises UserError where that fails."""
    model, processor = load_pretrained(name, revision, AutoProcessor, "CLIP model", "SEGMENTER.CLIP_MODEL")
    return ClipScorer(model, processor, prompts, device)
