"""SampledImage batches, and the embeddings of their prompts, with small pipelines from disk."""

import dataclasses
import functools
import inspect
import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from exchange.errors import UserError
from generator.criteria import loss
from generator.guidance import Guidance
from generator.pipelines import PipelineSource, Tuning
from generator.plan import PlannedImage
from generator.prompt_embeddings import EmbeddingFolder, PromptEmbeddings
from generator.sampling import Sampler, Sampling
from tests.generator.tiny_pipelines import FAMILIES, SIZE, make_classifier, make_pipeline

BATCH = [
    PlannedImage(f"{i}.png", (3, 40, 7)[i % 3], i % 3, i, 1000 + i, "a {}", prompt)
    for i, prompt in enumerate(["a cow", "a dog", "a cow", "the hen", "a dog"])
]
SAMPLING = Sampling(SIZE, steps=2, cfg_scale=5.0)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    make_pipeline(request.param).save_pretrained(path)
    return path


def make_sampler(folder, limit=8, store=None, cfg_scale=5.0, tuning=None):
    source = PipelineSource(str(folder), "main", "float32", torch.device("cpu"), tuning or Tuning())
    embeddings = PromptEmbeddings(source, cfg_scale > 1, 77, {} if store is None else store)
    return Sampler(source, embeddings, Sampling(SIZE, 3, cfg_scale), limit)


def pixels(images):
    return torch.stack([torch.from_numpy(image.pixels) for image in images]).int()


def test_embeddings_made_beforehand_give_the_pipelines_own_images(folder):
    sampler = make_sampler(folder, cfg_scale=4.0)
    sampler.prepare(BATCH)
    pipeline = PipelineSource(str(folder), "main", "float32", torch.device("cpu")).load()
    accepted = inspect.signature(pipeline.__call__).parameters
    images = pipeline(
        [image.prompt for image in BATCH],
        height=SIZE,
        width=SIZE,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(image.seed) for image in BATCH],
        output_type="np",
        **({"max_sequence_length": 77} if "max_sequence_length" in accepted else {}),
    ).images
    expected = torch.from_numpy((images * 255).round()).int()
    assert (pixels(sampler.sample(BATCH)) - expected).abs().max() <= 1


def test_images_do_not_depend_on_their_batch_beyond_rounding(folder):
    sampler = make_sampler(folder)
    sampler.prepare(BATCH)
    alone = torch.cat([pixels(sampler.sample([image])) for image in BATCH])
    assert (pixels(sampler.sample(BATCH)) - alone).abs().max() <= 1


def test_works_without_classifier_free_guidance(folder):
    sampler = make_sampler(folder, cfg_scale=1.0)
    sampler.prepare(BATCH)
    assert pixels(sampler.sample(BATCH)).shape == (5, SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd3")
    make_pipeline("sd3").save_pretrained(path)
    return path


def test_a_criterion_that_is_not_finite_is_unknown(sd3):
    sampler = make_sampler(sd3)
    sampler.prepare(BATCH)
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0, 0])
    guidance = Guidance(make_classifier(3), lambda logits, _: logits.sum(1) + values)
    images = sampler.sample(BATCH, guidance)
    for told in ([i.criterion_before for i in images], [i.criterion_after for i in images]):
        assert told[:3] == [None] * 3 and None not in told[3:]


@pytest.mark.bits
def test_embeddings_on_disk_serve_the_next_process_without_the_text_encoders(sd3, tmp_path, monkeypatch):
    first = make_sampler(sd3, store=EmbeddingFolder(str(tmp_path), "sd3"))
    first.prepare(BATCH)
    monkeypatch.setattr(PipelineSource, "load_encoders", lambda self: pytest.fail("encoders were loaded"))
    second = make_sampler(sd3, store=EmbeddingFolder(str(tmp_path), "sd3"))
    second.prepare(BATCH)
    assert torch.equal(pixels(first.sample(BATCH)), pixels(second.sample(BATCH)))
    assert "a cow" not in EmbeddingFolder(str(tmp_path), "another model")


def test_a_damaged_embedding_on_disk_is_made_again(sd3, tmp_path):
    store = EmbeddingFolder(str(tmp_path), "key")
    make_sampler(sd3, store=store).prepare(BATCH)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(whole) == 4  # of three prompts and the empty one
    for number, path in enumerate(whole):
        path.write_bytes(whole[path][: (0, 7, 90, -1)[number]])
        make_sampler(sd3, store=store).prepare(BATCH)
        assert {path: path.read_bytes() for path in whole} == whole


def test_each_prompt_is_encoded_once(sd3, monkeypatch):
    encoded = []
    encode = PromptEmbeddings._encode
    monkeypatch.setattr(
        PromptEmbeddings, "_encode", lambda self, encoders, p: encoded.append(p) or encode(self, encoders, p)
    )
    sampler = make_sampler(sd3)
    sampler.prepare(BATCH[:2])
    sampler.prepare(BATCH)
    assert encoded == ["a cow", "a dog", "the hen"]


def test_prompt_that_a_tokenizer_cuts_off_is_told_once(sd3, tmp_path, caplog):
    other = shutil.copytree(sd3, tmp_path / "sd3") / "tokenizer_2/tokenizer_config.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"model_max_length": 200}))
    fits, *long = ("cow " * 25, *(f"{'cow ' * 40}{i}" for i in range(2)))  # of three letters, with both ends
    images = [PlannedImage("x.png", 1, 0, i, i, "{}", prompt) for i, prompt in enumerate((fits, *long))]
    make_sampler(tmp_path / "sd3").prepare([*BATCH, *images])
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "generator.prompt_embeddings"]
    told = "2 prompts have more than 77 tokens and are cut off by a text encoder, such as"
    assert warning == f"{told} {long[0]!r}"


def test_pipeline_of_an_unknown_family_gets_its_prompts_as_they_are(sd3, monkeypatch):
    known = make_sampler(sd3)
    known.prepare(BATCH)
    expected = pixels(known.sample(BATCH))
    monkeypatch.setattr("generator.prompt_embeddings._ARGUMENTS", {})
    sampler = make_sampler(sd3)
    sampler.prepare(BATCH)
    # the pipeline's own default has 256 places for T5, which is absent; with 77 the images differ a little
    assert pixels(sampler.sample(BATCH)).shape == expected.shape


def out_of_memory_above(count, monkeypatch):
    draw, sizes = Sampler._sample, []

    def limited(self, batch, guidance):
        sizes.append(len(batch))
        if len(batch) > count:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return draw(self, batch, guidance)

    monkeypatch.setattr(Sampler, "_sample", limited)
    return sizes


def test_batch_is_halved_until_it_fits_and_the_images_stay_the_same(sd3, monkeypatch):
    sampler = make_sampler(sd3)
    sampler.prepare(BATCH)
    whole = pixels(sampler.sample(BATCH))
    sizes = out_of_memory_above(2, monkeypatch)
    assert (pixels(sampler.sample(BATCH)) - whole).abs().max() <= 1
    assert sizes == [5, 2, 2, 1]
    sampler.sample(BATCH)
    assert sizes[4:] == [2, 2, 1]  # it has learned


def test_no_room_for_a_single_image_is_told(sd3, monkeypatch):
    sampler = make_sampler(sd3)
    sampler.prepare(BATCH)
    sizes = out_of_memory_above(0, monkeypatch)
    with pytest.raises(UserError, match="memory"):
        sampler.sample(BATCH)
    assert sizes == [5, 2, 1]


@pytest.mark.parametrize("name", ["checkpointing", "channels_last", "compiled"])
def test_tuning_changes_nothing_beyond_rounding(sd3, name, monkeypatch):
    # traced as with any other backend, but without the minutes of a C++ compiler
    eager, compiled = {"backend": lambda graph, _: compiled.append(graph) or graph.forward}, []
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, **eager))
    guidance = Guidance(make_classifier(3))
    plain, tuned = make_sampler(sd3), make_sampler(sd3, tuning=Tuning(**{name: True}))
    for sampler in (plain, tuned):
        sampler.prepare(BATCH)
    assert (pixels(plain.sample(BATCH, guidance)) - pixels(tuned.sample(BATCH, guidance))).abs().max() <= 1
    assert bool(compiled) == (name == "compiled")


def test_a_guided_image_carries_the_criterion_before_and_after(sd3):
    sampler, guidance = make_sampler(sd3), Guidance(make_classifier(3), loss, every=1, scale=0.1)
    sampler.prepare(BATCH)
    guided = sampler.sample(BATCH, guidance)
    images = pixels(guided).permute(0, 3, 1, 2) / 255
    after = guidance.uncertainty(images, torch.tensor([image.class_index for image in BATCH]))
    assert [image.criterion_after for image in guided] == pytest.approx(after.tolist(), abs=1e-2)
    unshifted = sampler.sample(BATCH, dataclasses.replace(guidance, scale=0.0))
    before = [image.criterion_before for image in unshifted]
    assert [image.criterion_before for image in guided] == pytest.approx(before, rel=1e-6)
    assert all(image.criterion_before > 0 and image.shifts_left_out == 0 for image in guided)
    assert all(
        image.criterion_after > plain.criterion_after for image, plain in zip(guided, unshifted, strict=True)
    )


def test_pixels_are_rounded_to_the_nearest_of_256_levels(monkeypatch):
    levels = torch.arange(1, 255).repeat(3, 1).view(1, 3, 1, 254)
    images = torch.cat([(levels + shift) / 255 for shift in (-0.4, 0.4)])
    source = SimpleNamespace(
        device=torch.device("cpu"), load=lambda: lambda **_: SimpleNamespace(images=images)
    )
    sampler = Sampler(source, Mock(supported=False, return_value={}), SAMPLING, limit=2)
    sampler.prepare(BATCH[:2])
    expected = levels.permute(0, 2, 3, 1).expand(2, -1, -1, -1)
    assert torch.equal(pixels(sampler.sample(BATCH[:2])), expected.int())
