from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from diSegmenter.clip_score import ClipScorer, load_clip_scorer
from exchange.errors import UserError
from tests.diSegmenter.conftest import disc_image

CPU = torch.device("cpu")
PROMPTS = {3: "a photo of red disc", 7: "a photo of a large blue_disc"}
IMAGES = [disc_image(8), disc_image(15, size=(64, 32)), disc_image(12, ink=(0, 0, 250))]
ALPHAS = [np.random.default_rng(0).integers(0, 256, image.shape[:2], dtype=np.uint8) for image in IMAGES]


def test_scores_are_100_times_the_cosine_on_white_and_on_black(clip_folder):
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    scores = load_clip_scorer(clip_folder, "main", PROMPTS, CPU)(IMAGES, ALPHAS, [7, 3, 7])
    assert scores.shape == (3, 2)
    for i, category in enumerate([7, 3, 7]):
        share = ALPHAS[i][..., None] / 255
        for j, paper in enumerate((255, 0)):
            picture = np.rint(share * IMAGES[i][..., :3] + (1 - share) * paper).astype(np.uint8)
            inputs = processor(text=[PROMPTS[category]], images=[picture], return_tensors="pt")
            with torch.no_grad():
                output = model(**inputs)
            expected = 100 * (output.image_embeds @ output.text_embeds.T).item()
            assert scores[i, j] == pytest.approx(expected, abs=1e-3)


def test_texts_are_encoded_once_whatever_is_asked_for(clip_folder):
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    encoded = []
    encode = model.get_text_features
    model.get_text_features = lambda **tokens: encoded.extend(tokens["input_ids"]) or encode(**tokens)
    prompts = {category: f"a photo of {category * 'large '}disc" for category in range(1, 101)}
    scorer = ClipScorer(model, processor, prompts, CPU)
    for _ in range(3):
        scorer(IMAGES, ALPHAS, [3, 70, 100])
    assert len(encoded) == 100


@pytest.mark.parametrize(
    ("kind", "padding"), [("clip", "longest"), ("siglip", "max_length"), ("siglip2", "max_length")]
)
def test_texts_are_padded_as_the_model_was_trained(kind, padding):
    model, processor = Mock(), Mock()
    model.to.return_value.eval.return_value.requires_grad_.return_value = model
    model.config.model_type = kind
    model.get_text_features.return_value.pooler_output = torch.ones(2, 8)
    processor.tokenizer.return_value.to.return_value = {}
    ClipScorer(model, processor, PROMPTS, CPU)
    options = {"padding": padding, "truncation": True, "return_tensors": "pt"}
    processor.tokenizer.assert_called_once_with(list(PROMPTS.values()), **options)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="SEGMENTER.CLIP_MODEL"):
        load_clip_scorer(str(tmp_path / "nothing"), "main", PROMPTS, CPU)


def test_features_are_float32_on_a_gpu_too(monkeypatch):
    autocast = MagicMock()
    monkeypatch.setattr(torch, "autocast", autocast)
    model, processor = Mock(), Mock()
    model.to.return_value.eval.return_value.requires_grad_.return_value = model
    model.config.model_type = "clip"
    model.get_text_features.return_value.pooler_output = torch.ones(2, 8)
    processor.tokenizer.return_value.to.return_value = {}
    ClipScorer(model, processor, PROMPTS, torch.device("cuda"))
    assert not any(call.kwargs["enabled"] for call in autocast.call_args_list)
