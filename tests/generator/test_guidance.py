"""Guidance on small random pipelines of every family."""

import copy

import diffusers as d
import pytest
import torch

from exchange.errors import UserError
from generator.criteria import CRITERIA, loss
from generator.denoiser_call import denoiser_of
from generator.guidance import MODES, Guidance, ascend, guided
from tests.generator.tiny_pipelines import FAMILIES, SIZE, make_classifier, make_pipeline

PROMPTS = ["a photo of cow", "bat in b", "three dogs"]
CLASSES = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def classifier():
    return make_classifier(3)


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request):
    return make_pipeline(request.param)


def draw(pipeline, which=(0, 1, 2), **options):
    arguments = {
        "prompt": [PROMPTS[i] for i in which],
        "generator": [torch.Generator().manual_seed(i) for i in which],
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "output_type": "pt",
    }
    if isinstance(pipeline, d.FluxPipeline):
        arguments["max_sequence_length"] = 77
    return pipeline(**{**arguments, **options}).images


def draw_guided(pipeline, guidance, which=(0, 1, 2), **options):
    with guided(pipeline, guidance, CLASSES[list(which)]):
        return draw(pipeline, which, **options)


@pytest.mark.parametrize("mode", MODES)
def test_batch_equals_its_images_one_by_one(pipeline, classifier, mode):
    guidance = Guidance(classifier, every=2, mode=mode)
    one_by_one = torch.cat([draw_guided(pipeline, guidance, (i,)) for i in range(3)])
    torch.testing.assert_close(draw_guided(pipeline, guidance), one_by_one, rtol=0, atol=1e-4)


def test_chunks_do_not_change_the_result(pipeline, classifier):
    whole = draw_guided(pipeline, Guidance(classifier, every=2))
    chunks = draw_guided(pipeline, Guidance(classifier, every=2, chunk=2))
    torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-4)


@pytest.mark.bits
def test_pipeline_is_what_it_was_once_guidance_is_off(pipeline, classifier):
    networks = (denoiser_of(pipeline), pipeline.vae)
    before, scheduler = draw(pipeline), pipeline.scheduler
    flags = [parameter.requires_grad for network in networks for parameter in network.parameters()]
    with guided(pipeline, Guidance(classifier), CLASSES):
        assert not torch.equal(draw(pipeline), before)
        within = [parameter.requires_grad for network in networks for parameter in network.parameters()]
    assert torch.equal(draw(pipeline), before)
    assert pipeline.scheduler is scheduler
    assert flags == within  # frozen weights may be multiplied by other kernels, which round otherwise
    assert not any(network._forward_pre_hooks for network in networks)


@pytest.mark.bits
def test_shift_of_length_zero_changes_no_bit(pipeline, classifier):
    assert torch.equal(draw_guided(pipeline, Guidance(classifier, scale=0.0)), draw(pipeline))


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_criterion_of_the_finished_images_rises(criterion, classifier):
    pipeline = make_pipeline("sd3")
    guidance = Guidance(classifier, CRITERIA[criterion], every=2)
    plain, steered = draw(pipeline), draw_guided(pipeline, guidance)
    assert (guidance.uncertainty(steered, CLASSES) > guidance.uncertainty(plain, CLASSES)).all()


def test_works_without_classifier_free_guidance(pipeline, classifier):
    guidance = Guidance(classifier, every=2)
    alone = torch.cat([draw_guided(pipeline, guidance, (i,), guidance_scale=1.0) for i in range(3)])
    together = draw_guided(pipeline, guidance, guidance_scale=1.0)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert not torch.equal(together, draw(pipeline, guidance_scale=1.0))


@pytest.mark.parametrize(
    "scheduler",
    [
        d.EulerAncestralDiscreteScheduler(),
        d.LMSDiscreteScheduler(),
        d.DPMSolverMultistepScheduler(),
        d.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        d.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__}-{scheduler.config.prediction_type}",
)
def test_schedulers_of_latent_diffusion_batch_like_singles(classifier, scheduler):
    pipeline = make_pipeline("sd15")
    pipeline.scheduler = scheduler
    guidance = Guidance(classifier, every=2)
    one_by_one = torch.cat([draw_guided(pipeline, guidance, (i,)) for i in range(3)])
    torch.testing.assert_close(draw_guided(pipeline, guidance), one_by_one, rtol=0, atol=1e-4)


def captured_shift(pipeline, guidance, which=(0,)):
    """Sample before and after the shift, prediction and timestep at the first step of a guided call."""
    seen = {}
    original = type(pipeline.scheduler).step

    def step(self, prediction, timestep, sample, *args, **kwargs):
        seen.setdefault("shifted", (sample, prediction, timestep))
        return original(self, prediction, timestep, sample, *args, **kwargs)

    spied = copy.copy(pipeline.scheduler)
    spied.__class__ = type("Spied", (type(pipeline.scheduler),), {"step": step})
    scheduler, pipeline.scheduler = pipeline.scheduler, spied
    try:
        draw(pipeline, which, num_inference_steps=2)
        plain = seen.pop("shifted")
        draw_guided(pipeline, guidance, which, num_inference_steps=2)
    finally:
        pipeline.scheduler = scheduler
    return plain, seen["shifted"]


@pytest.mark.bits
def test_scheduler_steps_from_the_shifted_sample_with_the_prediction_from_before(classifier):
    pipeline = make_pipeline("sd3")
    (x, v, t), (shifted, used, used_t) = captured_shift(pipeline, Guidance(classifier, scale=0.07), (0, 1))
    assert torch.equal(used, v) and torch.equal(used_t, t)
    length = (shifted - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((2,), 0.07))


def test_exact_gradient_equals_finite_differences_of_the_whole_chain_in_float64():
    """The chain is written out here by hand: transformer, guidance, clean image, VAE, classifier, loss."""
    pipeline = make_pipeline("sd3").to(torch.float64)
    network = make_classifier(3).to(torch.float64)
    (x, _, timestep), (shifted, _, _) = captured_shift(pipeline, Guidance(network, loss, scale=0.03))
    with torch.no_grad():
        positive, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS[:1], None, None)

        def chain(latents):
            both = [
                pipeline.transformer(
                    hidden_states=latents,
                    timestep=timestep.expand(len(latents)),
                    encoder_hidden_states=words.expand(len(latents), -1, -1),
                    pooled_projections=whole.expand(len(latents), -1),
                    return_dict=False,
                )[0]
                for words, whole in ((negative, negative_pooled), (positive, pooled))
            ]
            v = both[0] + 5.0 * (both[1] - both[0])
            sigma = timestep.double() / 1000
            latent = (
                latents - sigma * v
            ) / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
            image = (pipeline.vae.decode(latent, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1)
            return -network(image).log_softmax(1)[:, 0]

        torch.manual_seed(0)
        directions = torch.randn(8, *x.shape[1:], dtype=torch.float64)
        step = 1e-5
        slopes = (chain(x + step * directions) - chain(x - step * directions)) / (2 * step)
        # The shift is scale · ‖x‖ · g / ‖g‖, so g is known up to its length; another finite difference,
        # along the shift itself, tells that.
        unit = (shifted - x) / (shifted - x).norm()
        length = (chain(x + step * unit) - chain(x - step * unit)) / (2 * step)
        expected = (directions * unit).flatten(1).sum(1) * length
    assert length > 0
    torch.testing.assert_close(slopes, expected, rtol=1e-4, atol=1e-6 * length.item())


def test_ascend_moves_each_sample_by_its_own_norm():
    torch.manual_seed(0)
    x, g = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    x *= torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1)
    for i in range(3):
        expected = x[i] + 0.03 * x[i].norm() * g[i] / (g[i].norm() + 1e-8)
        torch.testing.assert_close(ascend(x, g, 0.03)[i], expected)
    assert torch.equal(ascend(x, torch.zeros_like(g), 0.03), x)


def test_image_whose_gradient_is_not_finite_is_drawn_as_without_guidance(classifier):
    pipeline = make_pipeline("sd3")

    def broken(images):
        return classifier(images) * torch.tensor([1.0, torch.nan, 1.0])[:, None]

    with guided(pipeline, Guidance(broken, every=2), CLASSES) as trace:
        images = draw(pipeline)
    assert trace.left_out.tolist() == [0, 2, 0]
    torch.testing.assert_close(images[1], draw(pipeline)[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        images[[0, 2]], draw_guided(pipeline, Guidance(classifier, every=2))[[0, 2]], rtol=0, atol=1e-5
    )


@pytest.mark.bits
def test_trace_tells_the_criterion_before_the_first_shift(classifier):
    pipeline = make_pipeline("sd3")
    with guided(pipeline, Guidance(classifier), CLASSES) as trace:
        assert trace.first.isnan().all()
        draw(pipeline)
    with guided(pipeline, Guidance(classifier, scale=0.0), CLASSES) as unshifted:
        draw(pipeline)
    assert torch.equal(trace.first, unshifted.first)


def test_gradient_pass_may_use_another_decoder(classifier):
    pipeline = make_pipeline("sd3")
    torch.manual_seed(0)
    small = d.AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    images = draw_guided(pipeline, Guidance(classifier, decoder=small))
    assert images.shape == (3, 3, SIZE, SIZE) and not torch.equal(images, draw(pipeline))


@pytest.mark.bits
def test_noise_levels_outside_the_range_are_not_guided(classifier):
    pipeline = make_pipeline("sd3")  # its four steps have the noise levels 1, 0.86, 0.60 and 0.01
    plain = draw(pipeline)
    assert torch.equal(draw_guided(pipeline, Guidance(classifier, every=1, sigmas=(1.1, 2.0))), plain)
    with guided(pipeline, Guidance(classifier, every=1, sigmas=(0.5, 0.7)), CLASSES) as trace:
        third_only = draw(pipeline)
    assert trace.first.isfinite().all()
    every_third = draw_guided(pipeline, Guidance(classifier, every=2, sigmas=(0.0, 0.9)))
    assert torch.equal(third_only, every_third) and not torch.equal(third_only, plain)


def test_conditional_mode_is_exact_where_the_prompt_is_empty(classifier):
    """Both halves are the same then, and so are their gradients."""
    pipeline = make_pipeline("sd3")
    images = [
        draw_guided(pipeline, Guidance(classifier, mode=mode), prompt=["", "", ""])
        for mode in ("exact", "conditional")
    ]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-4)


def test_pipeline_that_combines_predictions_in_another_way_is_refused(classifier):
    pipeline = make_pipeline("sd15")
    with pytest.raises(UserError, match="guidance_rescale"):
        draw_guided(pipeline, Guidance(classifier), guidance_rescale=0.7)
    assert type(pipeline.scheduler) is d.PNDMScheduler


def test_pipeline_that_calls_its_denoiser_twice_is_refused(classifier):
    with pytest.raises(UserError, match="2 times"):
        draw_guided(make_pipeline("flux"), Guidance(classifier), negative_prompt=PROMPTS, true_cfg_scale=2.0)


def test_unknown_scheduler_is_refused_before_anything_is_drawn(classifier):
    pipeline = make_pipeline("sd15")
    pipeline.scheduler = d.HeunDiscreteScheduler()
    with (
        pytest.raises(UserError, match="HeunDiscreteScheduler"),
        guided(pipeline, Guidance(classifier), CLASSES),
    ):
        pytest.fail("the block was entered")


def test_number_of_classes_must_be_that_of_the_images(classifier):
    pipeline = make_pipeline("sd3")
    with pytest.raises(ValueError, match="2 classes"), guided(pipeline, Guidance(classifier), CLASSES[:2]):
        draw(pipeline)
