import numpy as np
import pytest
import torch
from torch import nn

from diSegmenter.foreground import MattingForeground, load_matting_foreground
from exchange.errors import UserError
from tests.diSegmenter.conftest import disc_image

CPU = torch.device("cpu")
IMAGES = [disc_image(8), disc_image(15, size=(64, 32)), disc_image(4, size=(33, 90)), disc_image(12)]


def test_a_model_with_code_of_its_own_loads_and_finds_the_object(foreground_folder):
    foreground = load_matting_foreground(foreground_folder, "main", True, 32, CPU)
    for image in IMAGES:
        (alpha,) = foreground([image])
        inside = image[..., 1] < 255
        assert alpha.dtype == np.uint8 and alpha.shape == image.shape[:2]
        overlap = (alpha > 128) & inside
        assert overlap.sum() / ((alpha > 128) | inside).sum() > 0.6
        assert alpha[0, 0] < 5 and alpha[inside].max() > 250


def test_a_batch_gives_what_single_images_give(foreground_folder):
    foreground = load_matting_foreground(foreground_folder, "main", True, 32, CPU)
    for alpha, image in zip(foreground(IMAGES), IMAGES, strict=True):
        np.testing.assert_allclose(alpha.astype(int), foreground([image])[0].astype(int), atol=1)


def test_the_network_sees_a_square_normalised_as_for_imagenet():
    seen = []

    class Spy(nn.Module):
        def forward(self, pixels):
            seen.append(pixels)
            return [torch.zeros(1), torch.full((len(pixels), 1, 8, 8), 3.0)]

    image = np.full((20, 30, 4), 51, np.uint8)
    (alpha,) = MattingForeground(Spy(), 16, CPU)([image])
    assert seen[0].shape == (1, 3, 16, 16)
    expected = (0.2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0][0, :, 5, 5], expected)
    assert (alpha == round(255 / (1 + np.exp(-3.0)))).all()


def test_foreign_code_does_not_run_without_the_users_word(foreground_folder):
    with pytest.raises(UserError, match="SEGMENTER.TRUST_REMOTE_CODE: true"):
        load_matting_foreground(foreground_folder, "main", False, 32, CPU)


def test_code_in_the_repositorys_assets_needs_no_word(foreground_folder, monkeypatch):
    import diSegmenter.foreground as module

    monkeypatch.setattr(module, "_OURS", foreground_folder)
    assert load_matting_foreground(foreground_folder, "main", False, 32, CPU)


def test_a_name_that_is_neither_a_folder_nor_on_a_hub_is_named(tmp_path):
    with pytest.raises(UserError, match="SEGMENTER.FOREGROUND_MODEL"):
        load_matting_foreground(str(tmp_path / "nothing"), "main", False, 32, CPU)
