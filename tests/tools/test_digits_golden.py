"""The recipes of the embedded models, by the numbers that they gave when they were recorded.

A recipe that is changed on purpose gives others: the failure shows them.
"""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPModel, CLIPProcessor

from exchange.config import from_repository
from tools.digits import samples, train_clip, train_foreground, train_judge, train_sd3

_CLIP = from_repository("assets/digits/clip")
_STEPS = 3


def clip() -> nn.Module:
    return train_clip.train(_STEPS, seed=0)[0]


def foreground() -> nn.Module:
    return train_foreground.train(from_repository("assets/digits/foreground"), _STEPS, seed=0)


def judge() -> nn.Module:
    return train_judge.train(_CLIP, _STEPS, seed=0)[0]


def autoencoder() -> AutoencoderKL:
    images, *_ = train_sd3.make_pictures(samples.split()["generation"], 24_000, seed=0)
    return train_sd3.train_autoencoder(images, _STEPS, seed=0)


def transformer() -> nn.Module:
    images, prompts, _ = train_sd3.make_pictures(samples.split()["generation"], 24_000, seed=0)
    torch.manual_seed(0)
    vae = train_sd3.build_autoencoder()
    vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    encoders = CLIPModel.from_pretrained(_CLIP, dtype=torch.float32), CLIPProcessor.from_pretrained(_CLIP)
    pipeline = train_sd3.assemble(*encoders, vae)
    train_sd3.train_transformer(pipeline, images, prompts, _STEPS, seed=0)
    return pipeline.transformer


def record(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses of the first steps, then the mean size of the trained weights; on a few pictures only."""
    losses: list[float] = []
    for module in (train_clip, train_foreground, train_judge, train_sd3):
        optimising, make_pictures = module.optimising, module.make_pictures

        def watched(*args: Any, of: Any = optimising, **options: Any) -> Any:
            for step in of(*args, **options):
                yield lambda loss, step=step: losses.append(loss.item()) or step(loss)

        def fewer(part: Any, count: Any, *args: Any, of: Any = make_pictures, **options: Any) -> Any:
            return of(part, *(min(a, 96) if isinstance(a, int) else a for a in (count, *args)), **options)

        monkeypatch.setattr(module, "optimising", watched)
        monkeypatch.setattr(module, "make_pictures", fewer)
    texts = train_clip.train_text
    monkeypatch.setattr(train_clip, "train_text", lambda *args, steps: texts(*args, steps=_STEPS))
    model = recipe()
    return [*losses, float(np.mean([weight.detach().abs().mean() for weight in model.parameters()]))]


GOLDEN: dict[Any, list[float]] = {
    clip: [4.993986, 4.307743, 3.556074, 0.1753154],
    foreground: [0.7018682, 0.6848623, 0.6761429, 0.3247409],
    judge: [7.17004, 6.179892, 5.910201, 0.1788813],
    autoencoder: [1.441539, 1.090718, 0.9690662, 0.2425377],
    transformer: [3.552796, 2.926098, 2.69767, 0.04272691],
}


@pytest.mark.parametrize("recipe", GOLDEN)
def test_the_first_steps_of_a_recipe_are_those_that_were_recorded(recipe, monkeypatch):
    np.testing.assert_allclose(record(recipe, monkeypatch), GOLDEN[recipe], rtol=1e-4)
