"""Drawing batches, and the embeddings of their prompts, with small pipelines from disk."""

import dataclasses
import functools
import inspect
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
from generator.sampling import Drawer, Sampling
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


def make_drawer(folder, limit=8, store=None, cfg_scale=5.0, tuning=None):
    source = PipelineSource(str(folder), "main", "float32", torch.device("cpu"), tuning or Tuning())
    embeddings = PromptEmbeddings(source, cfg_scale > 1, 77, {} if store is None else store)
    return Drawer(source, embeddings, Sampling(SIZE, 2, cfg_scale), limit)


def pixels(drawings):
    return torch.stack([torch.from_numpy(drawing.pixels) for drawing in drawings]).int()


def test_embeddings_made_beforehand_give_the_pipelines_own_images(folder):
    drawer = make_drawer(folder)
    drawer.prepare(BATCH)
    pipeline = PipelineSource(str(folder), "main", "float32", torch.device("cpu")).load()
    accepted = inspect.signature(pipeline.__call__).parameters
    images = pipeline(
        [image.prompt for image in BATCH],
        height=SIZE,
        width=SIZE,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(image.seed) for image in BATCH],
        output_type="np",
        **({"max_sequence_length": 77} if "max_sequence_length" in accepted else {}),
    ).images
    expected = torch.from_numpy((images * 255).round()).int()
    assert (pixels(drawer.draw(BATCH)) - expected).abs().max() <= 1


def test_images_do_not_depend_on_their_batch_beyond_rounding(folder):
    drawer = make_drawer(folder)
    drawer.prepare(BATCH)
    alone = torch.cat([pixels(drawer.draw([image])) for image in BATCH])
    assert (pixels(drawer.draw(BATCH)) - alone).abs().max() <= 1


@pytest.mark.bits
def test_same_batch_gives_the_same_bytes(folder):
    first, second = make_drawer(folder), make_drawer(folder)
    for drawer in (first, second):
        drawer.prepare(BATCH)
    assert torch.equal(pixels(first.draw(BATCH)), pixels(second.draw(BATCH)))


def test_works_without_classifier_free_guidance(folder):
    drawer = make_drawer(folder, cfg_scale=1.0)
    drawer.prepare(BATCH)
    assert pixels(drawer.draw(BATCH)).shape == (5, SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd3")
    make_pipeline("sd3").save_pretrained(path)
    return path


@pytest.mark.bits
def test_embeddings_on_disk_serve_the_next_process_without_the_text_encoders(sd3, tmp_path, monkeypatch):
    first = make_drawer(sd3, store=EmbeddingFolder(str(tmp_path), "sd3"))
    first.prepare(BATCH)
    monkeypatch.setattr(PipelineSource, "load_encoders", lambda self: pytest.fail("encoders were loaded"))
    second = make_drawer(sd3, store=EmbeddingFolder(str(tmp_path), "sd3"))
    second.prepare(BATCH)
    assert torch.equal(pixels(first.draw(BATCH)), pixels(second.draw(BATCH)))
    assert "a cow" not in EmbeddingFolder(str(tmp_path), "another model")


def test_each_prompt_is_encoded_once(sd3, monkeypatch):
    encoded = []
    encode = PromptEmbeddings._encode
    monkeypatch.setattr(
        PromptEmbeddings, "_encode", lambda self, encoders, p: encoded.append(p) or encode(self, encoders, p)
    )
    drawer = make_drawer(sd3)
    drawer.prepare(BATCH[:2])
    drawer.prepare(BATCH)
    assert encoded == ["a cow", "a dog", "the hen"]


def test_prompt_that_the_tokenizer_cuts_off_is_told_once(sd3, caplog):
    long = [PlannedImage("x.png", 1, 0, i, i, "{}", f"{'cow ' * 40}{i}") for i in range(2)]
    make_drawer(sd3).prepare([*BATCH, *long])
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "generator.prompt_embeddings"]
    assert warning.startswith("2 prompts have more than 77 tokens")


def test_pipeline_of_an_unknown_family_gets_its_prompts_as_they_are(sd3, monkeypatch):
    known = make_drawer(sd3)
    known.prepare(BATCH)
    expected = pixels(known.draw(BATCH))
    monkeypatch.setattr("generator.prompt_embeddings._ARGUMENTS", {})
    drawer = make_drawer(sd3)
    drawer.prepare(BATCH)
    # the pipeline's own default has 256 places for T5, which is absent; with 77 the images differ a little
    assert pixels(drawer.draw(BATCH)).shape == expected.shape


def out_of_memory_above(count, monkeypatch):
    draw, sizes = Drawer._draw, []

    def limited(self, batch, guidance):
        sizes.append(len(batch))
        if len(batch) > count:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return draw(self, batch, guidance)

    monkeypatch.setattr(Drawer, "_draw", limited)
    return sizes


def test_batch_is_halved_until_it_fits_and_the_images_stay_the_same(sd3, monkeypatch):
    drawer = make_drawer(sd3)
    drawer.prepare(BATCH)
    whole = pixels(drawer.draw(BATCH))
    sizes = out_of_memory_above(2, monkeypatch)
    assert (pixels(drawer.draw(BATCH)) - whole).abs().max() <= 1
    assert sizes == [5, 2, 2, 1]
    drawer.draw(BATCH)
    assert sizes[4:] == [2, 2, 1]  # it has learned


def test_no_room_for_a_single_image_is_told(sd3, monkeypatch):
    drawer = make_drawer(sd3)
    drawer.prepare(BATCH)
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(UserError, match="memory"):
        drawer.draw(BATCH)


@pytest.mark.parametrize("name", ["checkpointing", "channels_last", "compiled"])
def test_tuning_changes_nothing_beyond_rounding(sd3, name, monkeypatch):
    # traced as with any other backend, but without the minutes of a C++ compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    guidance = Guidance(make_classifier(3))
    plain, tuned = make_drawer(sd3), make_drawer(sd3, tuning=Tuning(**{name: True}))
    for drawer in (plain, tuned):
        drawer.prepare(BATCH)
    assert (pixels(plain.draw(BATCH, guidance)) - pixels(tuned.draw(BATCH, guidance))).abs().max() <= 1


def test_guided_drawing_carries_the_criterion_before_and_after(sd3):
    drawer, guidance = make_drawer(sd3), Guidance(make_classifier(3), loss, every=1, scale=0.1)
    drawer.prepare(BATCH)
    drawings = drawer.draw(BATCH, guidance)
    images = pixels(drawings).permute(0, 3, 1, 2) / 255
    after = guidance.uncertainty(images, torch.tensor([image.class_index for image in BATCH]))
    assert [d.criterion_after for d in drawings] == pytest.approx(after.tolist(), abs=1e-2)
    unshifted = drawer.draw(BATCH, dataclasses.replace(guidance, scale=0.0))
    before = [d.criterion_before for d in unshifted]
    assert [d.criterion_before for d in drawings] == pytest.approx(before, rel=1e-6)
    assert all(d.criterion_before > 0 and d.shifts_left_out == 0 for d in drawings)
    assert all(
        d.criterion_after > plain.criterion_after for d, plain in zip(drawings, unshifted, strict=True)
    )


def test_pixels_are_rounded_to_the_nearest_of_256_levels(monkeypatch):
    levels = torch.arange(1, 255).repeat(3, 1).view(1, 3, 1, 254)
    images = torch.cat([(levels + shift) / 255 for shift in (-0.4, 0.4)])
    source = SimpleNamespace(
        device=torch.device("cpu"), load=lambda: lambda **_: SimpleNamespace(images=images)
    )
    drawer = Drawer(source, Mock(supported=False, return_value={}), SAMPLING, limit=2)
    drawer.prepare(BATCH[:2])
    expected = levels.permute(0, 2, 3, 1).expand(2, -1, -1, -1)
    assert torch.equal(pixels(drawer.draw(BATCH[:2])), expected.int())
