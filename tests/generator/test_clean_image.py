"""The clean estimate against a sample that was mixed by the scheduler itself."""

import inspect

import diffusers as d
import pytest
import torch

from exchange.errors import UserError
from generator.clean_image import KNOWN_SCHEDULERS, check_scheduler, clean_estimate, noise_level

NOISE_PREDICTING = [kind for kind in KNOWN_SCHEDULERS if kind is not d.FlowMatchEulerDiscreteScheduler]


def mixed(scheduler, clean, noise, timestep):
    """``clean`` with ``noise`` by the scheduler's own rule for training or image-to-image."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(clean, timestep[None], noise)
    return scheduler.add_noise(clean, noise, timestep[None])


def test_flow_matching_velocity_gives_back_the_clean_sample():
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    timestep = scheduler.timesteps[4]
    sigma = scheduler.sigmas[scheduler.index_for_timestep(timestep)]
    sample = (1 - sigma) * clean + sigma * noise
    torch.testing.assert_close(clean_estimate(scheduler, timestep, sample, noise - clean), clean)
    assert noise_level(scheduler, timestep) == (1 - sigma, sigma)


@pytest.mark.parametrize("kind", NOISE_PREDICTING)
def test_predicted_noise_gives_back_the_clean_sample(kind):
    scheduler = kind(prediction_type="epsilon")
    scheduler.set_timesteps(10)
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    timestep = scheduler.timesteps[4]
    sample = mixed(scheduler, clean, noise, timestep)
    torch.testing.assert_close(
        clean_estimate(scheduler, timestep, sample, noise), clean, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", NOISE_PREDICTING)
def test_v_prediction_gives_the_same_clean_sample_as_the_noise_that_it_stands_for(kind):
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    scheduler = kind(prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    timestep = scheduler.timesteps[4]
    sample = mixed(scheduler, clean, noise, timestep)
    # Of x = α x₀ + σ ε with any α and σ: v = (α ε − σ x₀) / n. Both follow from clean and noise alone:
    alpha = mixed(scheduler, torch.ones_like(clean), torch.zeros_like(noise), timestep)
    sigma = mixed(scheduler, torch.zeros_like(clean), torch.ones_like(noise), timestep)
    velocity = (alpha * noise - sigma * clean) / (alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(
        clean_estimate(scheduler, timestep, sample, velocity), clean, rtol=1e-3, atol=1e-3
    )


def test_sample_prediction_is_known_and_is_the_clean_sample():
    scheduler = d.DDIMScheduler(prediction_type="sample")
    check_scheduler(scheduler)
    scheduler.set_timesteps(10)
    x, prediction = torch.randn(2, 1, 4, 8, 8).unbind()
    assert clean_estimate(scheduler, scheduler.timesteps[0], x, prediction) is prediction


def test_unknown_scheduler_or_prediction_is_refused():
    with pytest.raises(UserError, match="HeunDiscreteScheduler"):
        check_scheduler(d.HeunDiscreteScheduler())
    odd = d.DDIMScheduler()
    odd.register_to_config(prediction_type="score")
    with pytest.raises(UserError, match="score"):
        check_scheduler(odd)


@pytest.mark.parametrize("kind", KNOWN_SCHEDULERS)
def test_every_step_of_a_known_scheduler_starts_from_the_sample_that_it_is_given(kind):
    latent_diffusion = {"skip_prk_steps": True, "clip_sample": False}  # as the pipelines set them
    accepted = inspect.signature(kind).parameters
    options = {name: value for name, value in latent_diffusion.items() if name in accepted}
    torch.manual_seed(0)
    sample, prediction, shift = torch.randn(3, 1, 4, 8, 8)
    for guided_step in (0, 5):
        results = []
        for scale in (0.0, 0.1):
            scheduler = kind(**options)
            scheduler.set_timesteps(10)
            x = sample
            for index, timestep in enumerate(scheduler.timesteps):
                if index == guided_step:
                    x = x + scale * shift
                seed = {"generator": torch.Generator().manual_seed(index)}
                seed = seed if "generator" in inspect.signature(scheduler.step).parameters else {}
                x = scheduler.step(prediction, timestep, x, **seed).prev_sample
                if index == guided_step:
                    results.append(x)
        assert (results[1] - results[0]).flatten() @ shift.flatten() > 0.01 * shift.norm() ** 2
