"""One guided call against method.md's formulas, with every derivative written out by hand in float64 NumPy."""

from types import SimpleNamespace

import diffusers as d
import numpy as np
import pytest
import torch

from generator.criteria import entropy, loss
from generator.guidance import Guidance, guided

SHAPE, CLASSES, SCALE = (
    (1, 2, 3),
    [4, 0, 2],
    0.07,
)  # of the latents; of five, so that none stands in its own row
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
        self.config = d.configuration_utils.FrozenDict(
            scaling_factor=scaling_factor, shift_factor=shift_factor
        )
        self.dtype = torch.float64

    def decode(self, latents, return_dict):
        return ((latents.flatten(1) @ torch.tensor(self.matrix).T).unflatten(1, (3, 2, 3)),)


class Pipeline:
    """The denoising loop of every pipeline in diffusers; keeps what each step started from and what it got."""

    def __init__(self, scheduler, cfg_scale):
        self.guidance_scale, self.vae, self.steps = cfg_scale, Decoder(1, 1.5, 0.1), []
        denoiser = Denoiser()
        setattr(self, "transformer" if self._flow(scheduler) else "unet", denoiser)
        self.denoiser, steps = denoiser, self.steps

        class Watched(type(scheduler)):
            def step(self, prediction, timestep, sample, **options):
                steps[-1] |= {"shifted": sample, "used": prediction}
                return super().step(prediction, timestep, sample, **options)

        self.scheduler = Watched(**scheduler.config)

    @staticmethod
    def _flow(scheduler):
        return isinstance(scheduler, d.FlowMatchEulerDiscreteScheduler)

    @torch.no_grad()
    def __call__(self, num_steps):
        scheduler, x = self.scheduler, torch.tensor(NOISE).unflatten(1, SHAPE)
        copies = 2 if self.guidance_scale > 1 else 1
        words = torch.tensor(np.concatenate([np.repeat(EMPTY, 3, 0), WORDS]))[-3 * copies :]
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            if self._flow(scheduler):
                halves = self.denoiser(
                    hidden_states=torch.cat([x] * copies), timestep=t, encoder_hidden_states=words
                )[0]
            else:
                scaled = scheduler.scale_model_input(torch.cat([x] * copies), t)
                halves = self.denoiser(scaled, t, encoder_hidden_states=words)[0]
            first, last = halves.chunk(2) if copies == 2 else (0 * halves, halves)
            v = first + self.guidance_scale * (last - first) if copies == 2 else last
            self.steps.append({"x": x, "v": v, "sigma": scheduler.sigmas[len(self.steps)].item()})
            x = scheduler.step(v, t, x, return_dict=False)[0]


def shifted_by_hand(x, words, sigma, asked, criterion, mode, decoder, cfg_scale, flow):
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
    guidance = Guidance(
        lambda images: passes.append(len(images)) or images.flatten(1) @ torch.tensor(LOGITS).T,
        criterion,
        scale=SCALE,
        every=2,
        sigmas=sigmas,
        mode=mode,
        chunk=chunk,
        decoder=decoder,
    )
    with guided(pipeline, guidance, torch.tensor(CLASSES)) as trace:
        pipeline(7)
    assert len(pipeline.steps) == 7 and passes == ([2, 1] if chunk else [3]) * 2
    for number, step in enumerate(SimpleNamespace(**each) for each in pipeline.steps):
        assert torch.equal(step.used, step.v)
        if number not in (2, 4):
            assert torch.equal(step.shifted, step.x)
            continue
        x, flow = step.x.flatten(1).numpy(), pipeline._flow(scheduler)
        by_hand = [
            shifted_by_hand(
                x[i], WORDS[i], step.sigma, c, criterion, mode, decoder or pipeline.vae, cfg_scale, flow
            )
            for i, c in enumerate(CLASSES)
        ]
        expected, values = zip(*by_hand, strict=True)
        moved, shift = step.shifted.flatten(1).numpy() - x, np.array(expected) - x
        np.testing.assert_allclose(moved, shift, rtol=1e-5, atol=1e-6 * np.abs(shift).max())
        if number == 2:
            np.testing.assert_allclose(trace.first.numpy(), values, rtol=1e-6)
    assert trace.left_out.tolist() == [0, 0, 0]


def test_image_with_a_single_element_of_its_gradient_not_finite_is_left_where_it_is():
    class Repeats(Decoder):
        def decode(self, latents, return_dict):
            return (latents.expand(-1, 3, -1, -1),)

    def spoil(gradient):
        return gradient.index_put(
            (torch.tensor([1]), *torch.zeros(3, 1).long()), torch.tensor(torch.inf).double()
        )

    def classifier(images):
        images.register_hook(spoil)
        return images.flatten(1) @ torch.tensor(LOGITS).T

    pipeline = Pipeline(d.FlowMatchEulerDiscreteScheduler(), 5.0)
    guidance = Guidance(classifier, every=2, mode="decoder", decoder=Repeats(2, 9.0, 0.0))
    with guided(pipeline, guidance, torch.tensor(CLASSES)) as trace:
        pipeline(2)
    moved = pipeline.steps[0]["shifted"] != pipeline.steps[0]["x"]
    assert moved.flatten(1).any(dim=1).tolist() == [True, False, True]
    assert trace.left_out.tolist() == [0, 1, 0] and trace.first.isfinite().all()
