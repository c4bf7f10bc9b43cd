from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageSegmentation,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from diSegmenter import foreground as foreground_module
from diSegmenter.foreground import MattingForeground, PromptedSam2, load_foreground, load_network
from exchange.config import REPOSITORY
from exchange.errors import UserError
from tests.diSegmenter.conftest import disc_image

CPU = torch.device("cpu")
IMAGES = [disc_image(8), disc_image(15, size=(64, 32)), disc_image(4, size=(33, 90)), disc_image(12)]
IMAGES += [disc_image(10, size=(32, 64)), disc_image(8, size=(40, 30))]


def test_a_model_with_code_of_its_own_loads_and_finds_the_object(foreground_folder, caplog):
    foreground = load_foreground("matting", foreground_folder, "main", True, 32, CPU)
    assert caplog.messages == [
        f"SEGMENTER.TRUST_REMOTE_CODE is set: {foreground_folder} at main may run its own code here"
    ]
    for image in IMAGES:
        (alpha,) = foreground([image])
        inside = image[..., 1] < 255
        assert alpha.dtype == np.uint8 and alpha.shape == image.shape[:2]
        overlap = (alpha > 128) & inside
        assert overlap.sum() / ((alpha > 128) | inside).sum() > 0.6
        assert alpha[0, 0] < 5 and alpha[inside].max() > 250


def test_a_batch_gives_what_single_images_give(foreground_folder):
    foreground = load_foreground("matting", foreground_folder, "main", True, 32, CPU)
    for alpha, image in zip(foreground(IMAGES), IMAGES, strict=True):
        np.testing.assert_allclose(alpha.astype(int), foreground([image])[0].astype(int), atol=1)


def resized(image, size):
    """By a triangle as wide as a pixel of the coarser grid, around the centres of pixels: (H, W) float64."""
    for old, new in zip(image.shape, size, strict=True):
        centres = (np.arange(new)[:, None] + 0.5) * old / new
        weights = np.maximum(1 - np.abs(np.arange(old) + 0.5 - centres) / max(old / new, 1), 0)
        image = (weights / weights.sum(1, keepdims=True) @ image).T
    return image


def test_the_network_sees_a_square_normalised_as_for_imagenet_and_its_last_output_is_the_mask():
    seen, random = [], np.random.default_rng(0)
    image, logits = random.integers(0, 256, (60, 80, 4), dtype=np.uint8), random.normal(size=(8, 8)) * 3

    class Spy(nn.Module):
        def forward(self, pixels):
            assert not self.training and not torch.is_autocast_enabled("cpu")
            seen.append(pixels)
            return [torch.zeros(1), torch.tensor(logits, dtype=torch.float32).expand(len(pixels), 1, 8, 8)]

    (alpha,) = MattingForeground(Spy(), (16, 16), CPU)([image])
    for channel, mean, deviation in zip(range(3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True):
        expected = (resized(image[..., channel] / 255, (16, 16)) - mean) / deviation
        np.testing.assert_allclose(seen[0][0, channel].numpy(), expected, atol=1e-5)
    expected = 255 * resized(1 / (1 + np.exp(-logits)), (60, 80))
    assert alpha.dtype == np.uint8  # eight bits, truncated
    assert (alpha <= expected + 1e-3).all() and (expected - alpha).max() < 1.001


def test_foreign_code_does_not_run_without_the_users_word(foreground_folder):
    with pytest.raises(UserError, match=r"\(SEGMENTER.FOREGROUND: onnx\).*SEGMENTER.TRUST_REMOTE_CODE: true"):
        load_foreground("matting", foreground_folder, "main", False, 32, CPU)


def test_code_in_the_repositorys_assets_needs_no_word_but_code_that_is_only_reached_through_them_does(
    foreground_folder, tmp_path, monkeypatch, caplog
):
    assert not foreground_module._is_ours(str(REPOSITORY / "runs"))
    monkeypatch.setattr(foreground_module, "_OURS", foreground_folder)
    for trusts in (False, True):
        assert load_foreground("matting", foreground_folder, "main", trusts, 32, CPU) and not caplog.messages
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(foreground_module, "_OURS", tmp_path / "assets")
    for link, name in (("theirs", "assets/../theirs"), ("assets/linked", "assets/linked")):
        (tmp_path / link).symlink_to(foreground_folder)
        with pytest.raises(UserError, match="SEGMENTER.TRUST_REMOTE_CODE: true"):
            load_foreground("matting", str(tmp_path / name), "main", False, 32, CPU)


def test_a_name_that_is_neither_a_folder_nor_on_a_hub_is_named(tmp_path):
    with pytest.raises(UserError, match="SEGMENTER.FOREGROUND_MODEL"):
        load_foreground("matting", str(tmp_path / "nothing"), "main", False, 32, CPU)


def test_the_alpha_that_an_image_brings_is_a_choice():
    image = np.dstack([disc_image(8), np.full((40, 48), 99, np.uint8)])
    (alpha,) = load_foreground("alpha", "", "main", False, 32, CPU)([image])
    assert (alpha == 99).all()


def test_a_choice_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="SEGMENTER.FOREGROUND is 'mating'"):
        load_foreground("mating", "", "main", False, 32, CPU)


def offered_masks(asked):
    """A SAM 2 that offers three masks of each of two images, and notes what it is asked."""

    def model(pixel_values, **prompt):
        asked.append(prompt)
        trust = torch.tensor([[[0.1, 0.9, 0.5]], [[0.3, 0.1, 0.5]]])
        masks = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(2, 1, 3, 16, 16)
        return SimpleNamespace(iou_scores=trust, pred_masks=masks)

    return model


def test_sam_2_gives_the_mask_that_it_trusts_most_in_a_box_of_nine_tenths_of_the_image():
    asked = []
    logits = PromptedSam2(offered_masks(asked))(torch.zeros(2, 3, 40, 40))
    assert asked[0].keys() == {"input_boxes"}
    torch.testing.assert_close(
        asked[0]["input_boxes"], torch.tensor([[[2.0, 2.0, 38.0, 38.0]]]).expand(2, 1, 4)
    )
    assert logits.shape == (2, 1, 16, 16) and logits[:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_the_background_is_what_sam_2_finds_at_the_four_corners_and_the_object_the_rest(monkeypatch):
    asked = []
    monkeypatch.setattr(Sam2Model, "from_pretrained", Mock())
    network = load_network("sam2_background", "a name", "main", False)
    network.model = Mock(side_effect=offered_masks(asked))
    logits = network(torch.zeros(2, 3, 40, 40))
    points, labels = asked[0]["input_points"], asked[0]["input_labels"]
    assert asked[0].keys() == {"input_points", "input_labels"}
    assert labels.shape == (2, 1, 4) and (labels == 1).all()  # all of them are of what is sought
    for of_image in points[:, 0].tolist():
        assert sorted(of_image) == [[0.0, 0.0], [0.0, 39.0], [39.0, 0.0], [39.0, 39.0]]
    assert logits[:, 0, 0, 0].tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("choice", "kind", "options"),
    [
        ("sam2", Sam2Model, {}),
        ("sam2_background", Sam2Model, {}),
        ("matting", AutoModelForImageSegmentation, {"trust_remote_code": True}),
    ],
)
def test_weights_and_code_are_of_the_revision_that_is_asked_for(monkeypatch, choice, kind, options):
    monkeypatch.setattr(kind, "from_pretrained", load := Mock())
    load_network(choice, "a name", "v2", True)
    load.assert_called_once_with("a name", revision="v2", **options)


@pytest.mark.parametrize("choice", ["sam2", "sam2_background"])
def test_sam_2_loads_and_gives_a_mask_of_each_image(tmp_path, choice):
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    )
    model = Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )
    model.save_pretrained(tmp_path)
    alphas = load_foreground(choice, str(tmp_path), "main", False, 512, CPU)(IMAGES)
    assert [alpha.shape for alpha in alphas] == [image.shape[:2] for image in IMAGES]
