"""One guided call against method.md's formulas, with every derivative written out by hand in float64 NumPy."""

from types import SimpleNamespace

import diffusers as d
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from generator.criteria import entropy, loss
from generator.guidance import Guidance, ascend, guided

SHAPE = (1, 2, 3)  # of the latents
CLASSES = [4, 0, 2]  # of five, so that none is the number of its image
SCALE = 0.07
RANDOM = np.random.default_rng(5)
W, WORDS, EMPTY = RANDOM.normal(size=(6, 6)), RANDOM.normal(size=(3, 6)), RANDOM.normal(size=(1, 6))
LOGITS = RANDOM.normal(size=(6, 18))  # of five classes and the background
NOISE = RANDOM.normal(size=(3, 6))


class Denoiser(torch.nn.Module):
    """tanh(W x + c) of each image x and its words c, called as a transformer or as a UNet is."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True):
        x = hidden_states.flatten(1) @ torch.tensor(W).T + encoder_hidden_states
        return (x.tanh().unflatten(1, SHAPE),)


class Decoder(torch.nn.Module):
    """A linear decoder that stays within [-1, 1], so that nothing is clamped."""

    def __init__(self, seed, scaling_factor, shift_factor):
        super().__init__()
        self.matrix = np.random.default_rng(seed).normal(size=(18, 6)) / 1e5
        self.config = FrozenDict(scaling_factor=scaling_factor, shift_factor=shift_factor)
        self.dtype = torch.float64

    def decode(self, latents, return_dict):
        return ((latents.flatten(1) @ torch.tensor(self.matrix).T).unflatten(1, (3, 2, 3)),)


class Pipeline:
    """The denoising loop of every pipeline in diffusers; keeps what each step started from and what it got."""

    def __init__(self, scheduler, cfg_scale):
        self.guidance_scale, self.vae, self.denoiser = cfg_scale, Decoder(1, 1.5, 0.1), Denoiser()
        self.flow = isinstance(scheduler, d.FlowMatchEulerDiscreteScheduler)
        setattr(self, "transformer" if self.flow else "unet", self.denoiser)
        self.steps = steps = []

        class Watched(type(scheduler)):
            def step(self, prediction, timestep, sample, **options):
                steps[-1] |= {"shifted": sample, "used": prediction}
                return super().step(prediction, timestep, sample, **options)

        self.scheduler = Watched(**scheduler.config)

    @torch.no_grad()
    def __call__(self, num_steps):
        scheduler, x = self.scheduler, torch.tensor(NOISE).unflatten(1, SHAPE)
        copies = 2 if self.guidance_scale > 1 else 1
        words = torch.tensor(np.concatenate([np.repeat(EMPTY, 3, 0), WORDS]))[-3 * copies :]
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            both, named = torch.cat([x] * copies), {"encoder_hidden_states": words}
            if self.flow:
                v = self.denoiser(hidden_states=both, timestep=t, **named)[0]
            else:
                v = self.denoiser(scheduler.scale_model_input(both, t), t, **named)[0]
            if copies == 2:
                v = v[:3] + self.guidance_scale * (v[3:] - v[:3])
            self.steps.append({"x": x, "v": v, "sigma": scheduler.sigmas[len(self.steps)].item()})
            x = scheduler.step(v, t, x, return_dict=False)[0]


def shifted_by_hand(x, words, asked, sigma, criterion, mode, decoder, cfg_scale, flow):
    """Of one image, flattened: the latents after the shift, and the criterion before it."""
    inner = 1.0 if flow else 1 / np.sqrt(sigma**2 + 1)  # the scaling of a k-diffusion model's input
    halves = [np.tanh(W @ (inner * x) + c) for c in (EMPTY[0], words)]
    slopes = [inner * (1 - half**2)[:, None] * W for half in halves]
    v, slope = (a + cfg_scale * (b - a) if cfg_scale > 1 else b for a, b in (halves, slopes))
    slope = {"exact": slope, "conditional": slopes[1], "decoder": 0}[mode]
    clean, clean_slope = x - sigma * v, np.eye(6) - sigma * slope
    scaling, offset = decoder.config["scaling_factor"], decoder.config["shift_factor"] or 0
    image = decoder.matrix @ (clean / scaling + offset) / 2 + 0.5
    z = LOGITS @ image
    p = np.exp(z) / np.exp(z).sum()
    if criterion is entropy:
        value = -np.sum(p * np.log(p))
        slope_z = -p * (np.log(p) + value)
    else:
        value = -np.log(p[asked])
        slope_z = p - np.eye(6)[asked]
    g = clean_slope.T @ decoder.matrix.T @ LOGITS.T @ slope_z / (2 * scaling)
    return x + SCALE * np.linalg.norm(x) * g / (np.linalg.norm(g) + 1e-8), value


@pytest.mark.parametrize("mode", ["exact", "conditional", "decoder"])
@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("criterion", [entropy, loss])
@pytest.mark.parametrize(
    ("scheduler", "cfg_scale", "decoder"),
    [
        (d.FlowMatchEulerDiscreteScheduler(shift=3.0), 5.0, None),
        (d.FlowMatchEulerDiscreteScheduler(shift=3.0), 1.0, Decoder(2, 0.8, None)),
        (d.EulerDiscreteScheduler(), 5.0, Decoder(2, 0.8, 0.3)),
    ],
    ids=["flow", "flow without classifier-free guidance, other decoder", "epsilon, other decoder"],
)
def test_every_shift_is_that_of_the_gradient_written_out_by_hand(
    mode, chunk, criterion, scheduler, cfg_scale, decoder
):
    pipeline = Pipeline(scheduler, cfg_scale)
    pipeline.scheduler.set_timesteps(7)
    levels = pipeline.scheduler.sigmas.tolist()
    sigmas = (levels[4], levels[2])  # of the steps 0, 2, 4 and 6 the first lies above, the last below
    passes = []

    def classifier(images):
        passes.append(len(images))
        return images.flatten(1) @ torch.tensor(LOGITS).T

    guidance = Guidance(classifier, criterion, SCALE, 2, sigmas, mode, chunk, decoder)
    with guided(pipeline, guidance, torch.tensor(CLASSES)) as trace:
        pipeline(7)
    assert len(pipeline.steps) == 7 and passes == ([2, 1] if chunk else [3]) * 2
    for number, step in enumerate(SimpleNamespace(**each) for each in pipeline.steps):
        assert torch.equal(step.used, step.v)
        if number not in (2, 4):
            assert torch.equal(step.shifted, step.x)
            continue
        x, settings = step.x.flatten(1).numpy(), (criterion, mode, decoder or pipeline.vae, cfg_scale)
        each = [
            (*image, step.sigma, *settings, pipeline.flow) for image in zip(x, WORDS, CLASSES, strict=True)
        ]
        expected, values = zip(*[shifted_by_hand(*one) for one in each], strict=True)
        moved, shift = step.shifted.flatten(1).numpy() - x, np.array(expected) - x
        np.testing.assert_allclose(moved, shift, rtol=1e-5, atol=1e-6 * np.abs(shift).max())
        if number == 2:
            np.testing.assert_allclose(trace.first.numpy(), values, rtol=1e-6)
    assert trace.left_out.tolist() == [0, 0, 0]


def test_image_with_a_single_element_of_its_gradient_not_finite_is_left_where_it_is():
    spoilt = torch.zeros(3, 3, 2, 3, dtype=torch.float64)
    spoilt[1, 0, 0, 0] = torch.inf

    def classifier(images):
        images.register_hook(lambda gradient: gradient + spoilt)
        return images.flatten(1) @ torch.tensor(LOGITS).T

    pipeline, repeats = Pipeline(d.FlowMatchEulerDiscreteScheduler(), 5.0), Decoder(2, 9.0, 0.0)
    repeats.decode = lambda latents, return_dict: (latents.expand(-1, 3, -1, -1),)
    guidance = Guidance(classifier, every=2, mode="decoder", decoder=repeats)
    with guided(pipeline, guidance, torch.tensor(CLASSES)) as trace:
        pipeline(2)
    moved = pipeline.steps[0]["shifted"] != pipeline.steps[0]["x"]
    assert moved.flatten(1).any(dim=1).tolist() == [True, False, True]
    assert trace.left_out.tolist() == [0, 1, 0] and trace.first.isfinite().all()


def test_latents_in_half_precision_are_moved_in_single_and_rounded_once():
    x, g = torch.randn(2, 4, 300, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    moved = x + SCALE * x.norm(dim=1, keepdim=True) / (g.norm(dim=1, keepdim=True) + 1e-8) * g
    assert torch.equal(ascend(x.bfloat16(), g.bfloat16(), SCALE), moved.bfloat16())
    told = Guidance(lambda images: images.bfloat16()).uncertainty(x, torch.zeros(4))
    assert torch.equal(told, entropy(x, torch.zeros(4)))  # in single, too
