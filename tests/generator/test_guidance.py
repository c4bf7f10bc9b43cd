"""Guidance on small random pipelines of every family; test_guidance_oracle.py has its numbers."""

from types import SimpleNamespace

import diffusers as d
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from exchange.errors import UserError
from generator.clean_image import decode_latents
from generator.criteria import CRITERIA
from generator.denoiser_call import DenoiserCalls, denoiser_of
from generator.guidance import MODES, Guidance, _Steering, guided
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
        arguments["max_sequence_length"] = len(PROMPTS)  # positions of words are none of a batch's images
    return pipeline(**{**arguments, **options}).images


def draw_guided(pipeline, guidance, which=(0, 1, 2), **options):
    with guided(pipeline, guidance, CLASSES[list(which)]):
        return draw(pipeline, which, **options)


@pytest.mark.parametrize("mode", MODES)
def test_batch_in_chunks_equals_its_images_one_by_one(pipeline, classifier, mode):
    guidance = Guidance(classifier, every=2, mode=mode, chunk=2)
    one_by_one = torch.cat([draw_guided(pipeline, guidance, (i,)) for i in range(3)])
    torch.testing.assert_close(draw_guided(pipeline, guidance), one_by_one, rtol=0, atol=1e-4)


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
    assert not any(network._forward_pre_hooks or network._forward_hooks for network in networks)


@pytest.mark.bits
def test_shift_of_length_zero_changes_no_bit(pipeline, classifier):
    assert torch.equal(draw_guided(pipeline, Guidance(classifier, scale=0.0)), draw(pipeline))


@pytest.mark.parametrize(("mode", "chunk"), [("exact", 0), ("exact", 2), ("exact", 3), ("decoder", 0)])
def test_guided_step_calls_the_denoiser_once_unless_in_chunks(pipeline, classifier, mode, chunk):
    sizes = []
    denoiser = denoiser_of(pipeline)
    hook = denoiser.register_forward_hook(lambda module, args, output: sizes.append(len(output[0])))
    try:
        draw(pipeline)
        unguided = len(sizes)
        draw_guided(pipeline, Guidance(classifier, every=2, mode=mode, chunk=chunk))
    finally:
        hook.remove()
    guided_steps = (unguided + 1) // 2  # each in the chunks of two images and of one
    assert len(sizes) == 2 * unguided + (2 * guided_steps if chunk == 2 else 0)


def test_images_are_those_of_a_second_forward_pass(pipeline, classifier, monkeypatch):
    guidance = Guidance(classifier, every=2)
    images = draw_guided(pipeline, guidance)
    monkeypatch.setattr(_Steering, "_wants_graph", lambda self: False)
    torch.testing.assert_close(images, draw_guided(pipeline, guidance), rtol=0, atol=1e-5)


def test_graph_exists_at_guided_steps_alone_and_never_leaves_the_call(pipeline, classifier):
    guidance, seen = Guidance(classifier, every=3), []

    def watch(module, args, kwargs, output):
        seen.append((torch.is_grad_enabled(), output[0].requires_grad))

    with guided(pipeline, guidance, CLASSES):  # this hook comes after those of the guidance
        hook = denoiser_of(pipeline).register_forward_hook(watch, with_kwargs=True)
        entered = denoiser_of(pipeline).register_forward_pre_hook(
            lambda module, args: seen.append(torch.is_grad_enabled())
        )
        try:
            draw(pipeline)
        finally:
            hook.remove()
            entered.remove()
    steps = range(len(seen) // 2)
    assert seen[::2] == [step % 3 == 0 for step in steps]
    assert set(seen[1::2]) == {(False, False)}


@pytest.mark.filterwarnings("error")  # as what goes wrong in a hook then is one
def test_a_call_that_fails_leaves_gradients_off():
    class Failing(torch.nn.Module):
        def forward(self, hidden_states):
            raise torch.cuda.OutOfMemoryError(f"with a graph: {torch.is_grad_enabled()}")

    calls = DenoiserCalls(SimpleNamespace(transformer=Failing()), wants_graph=lambda: True)
    with torch.no_grad(), calls.watched():
        with pytest.raises(torch.cuda.OutOfMemoryError, match="with a graph: True"):
            calls.denoiser(hidden_states=torch.zeros(1, 4))
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [lambda sample: (sample,), Transformer2DModelOutput])
def test_a_call_with_gradients_leaves_them_on_and_the_graph_of_the_step_as_it_is(kind):
    class Double(torch.nn.Module):
        def forward(self, hidden_states):
            return kind(2 * hidden_states)

    calls = DenoiserCalls(SimpleNamespace(transformer=Double()), wants_graph=lambda: True)
    with torch.no_grad(), calls.watched():
        output = calls.denoiser(hidden_states=torch.ones(1, 4))
        assert output[0].tolist() == [[2] * 4] and not output[0].requires_grad
        graph = calls._graph
        with torch.enable_grad():
            calls.denoiser(hidden_states=torch.zeros(1, 4))
            assert torch.is_grad_enabled() and calls._graph is graph
    assert not calls.has_graph
    with pytest.raises(UserError, match="0 times"):  # nothing of it is left to the next pipeline
        _ = calls.keywords


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


def test_packed_latents_of_a_picture_that_is_not_square_become_the_pipeline_s_own():
    pipeline, call = make_pipeline("flux"), {}
    pipeline.vae.decoder.conv_out.weight.data *= 100  # beyond what a picture can hold
    pipeline.transformer.register_forward_pre_hook(lambda *given: call.update(given[2]), with_kwargs=True)
    images, latents = (draw(pipeline, (0,), width=48, output_type=kind) for kind in ("pt", "latent"))
    assert images.shape == (1, 3, SIZE, 48) and {0, 1} <= set(images.flatten().tolist())
    torch.testing.assert_close(decode_latents(pipeline, pipeline.vae, latents, call), images)


def test_pipeline_that_combines_predictions_in_another_way_is_refused(classifier):
    pipeline = make_pipeline("sd15")
    with pytest.raises(UserError, match="guidance_rescale"):
        draw_guided(pipeline, Guidance(classifier), guidance_rescale=0.7)
    assert type(pipeline.scheduler) is d.PNDMScheduler


@pytest.mark.parametrize(
    "dtype, allowed", [(torch.float32, 1e-3), (torch.float16, 0.1), (torch.bfloat16, 0.1)]
)
@pytest.mark.parametrize("size", [0.01, 1, 100])
def test_predictions_may_differ_by_rounding_relative_to_their_size(dtype, allowed, size):
    theirs = torch.full((2, 4, 8, 8), float(size), dtype=dtype)
    steering = SimpleNamespace(pipeline=None)
    _Steering._check_combination(steering, theirs * (1 + 0.5 * allowed), theirs)
    with pytest.raises(UserError, match="guidance_rescale"):
        _Steering._check_combination(steering, theirs * (1 + 2 * allowed), theirs)


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
