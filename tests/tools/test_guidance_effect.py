import numpy as np
import pytest

from generator.plan import PlannedImage
from tools.guidance_effect import clip_scores, compare


def test_differences_are_taken_within_pairs():
    effect = compare(np.array([0.1, 0.2, 0.6]), np.array([0.3, 0.5, 0.5]))
    assert effect["difference"] == pytest.approx(0.4 / 3)
    assert effect["standard_error"] == pytest.approx(np.std([0.2, 0.3, -0.1], ddof=1) / np.sqrt(3))
    assert effect["share_of_pairs_that_rose"] == pytest.approx(2 / 3)


def test_each_image_is_scored_whole_and_with_its_own_category():
    def scorer(images, alphas, category_ids):
        assert all(alpha.shape == (4, 6) and (alpha == 255).all() for alpha in alphas)
        values = [
            int(image[0, 0, 0]) + 100 * category for image, category in zip(images, category_ids, strict=True)
        ]
        return np.array([[value, -1.0] for value in values])

    images = np.tile(np.arange(5, dtype=np.uint8)[:, None, None, None], (1, 4, 6, 3))
    plan = [PlannedImage(f"{i}.png", 7 + i, i, 0, i, "a {}", "a cat") for i in range(5)]
    assert clip_scores(scorer, images, plan, batch_size=2).tolist() == [700, 801, 902, 1003, 1104]
