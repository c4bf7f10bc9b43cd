"""Every key of GENERATOR reaches what it is for."""

import os
from dataclasses import astuple
from unittest.mock import Mock

import pytest
import torch

from exchange.config import REPOSITORY, load_config
from generator import build
from generator.allocation import AllocationRule
from generator.criteria import loss
from generator.guidance import Guidance
from generator.plan import PromptBook, Sentences
from generator.sampling import Sampling

CONFIG = str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml")


def settings(**changes):
    options = [text for key, value in changes.items() for text in (f"GENERATOR.{key}", str(value))]
    return load_config(CONFIG, options)


def test_guidance_and_allocation_are_what_the_settings_say():
    classifier, decoder = torch.nn.Identity(), torch.nn.Identity()
    length = {"GUIDANCE_SCALE": 0.5, "GUIDANCE_EVERY": 3, "GUIDANCE_SIGMAS": [0.1, 0.9]}
    cfg = settings(CRITERION="loss", GUIDANCE_MODE="decoder", GUIDANCE_CHUNK=2, **length)
    expected = Guidance(classifier, loss, 0.5, 3, (0.1, 0.9), "decoder", 2, decoder)
    assert build.build_guidance(cfg, classifier, decoder) == expected
    unguided = load_config(CONFIG, ["MODEL.META_ARCHITECTURE", "EmbedRCNN", "GENERATOR.GUIDANCE_SCALE", "0"])
    assert build.build_guidance(unguided, classifier).scale == 0
    exponents = {"FREQUENCY_EXPONENT": 0.5, "DRIFT_EXPONENT": 0.25, "AP_EXPONENT": 2.0}
    bounds = {"PER_CLASS": 5, "MIN_PER_CLASS": 1, "MAX_PER_CLASS": 9}
    cfg = settings(BALANCED=True, AP_MODE="inverse", **exponents, **bounds)
    assert build.build_allocation_rule(cfg) == AllocationRule(5, True, 0.5, 0.25, "inverse", 2.0, 1, 9)
    assert build.build_allocation_rule(settings(MAX_PER_CLASS=0)).maximum is None


def test_sentences_are_those_of_a_folder_below_the_repository_for_their_share(monkeypatch):
    monkeypatch.setattr(build, "read_prompts", lambda folder, names: {folder: list(names)})
    cfg = settings(PROMPT_FOLDER="prompts", PROMPT_SHARE=0.25, NAMES="clean", TEMPLATES="['a {}', '{}']")
    sentences = Sentences({str(REPOSITORY / "prompts"): ["cow", "dog"]}, 0.25)
    expected = PromptBook(("a {}", "{}"), "clean", sentences)
    assert build.build_prompt_book(cfg, iter(["cow", "dog"])) == expected


@pytest.mark.parametrize("key", ["GUIDANCE_CHECKPOINTING", "CHANNELS_LAST", "COMPILE"])
def test_each_way_to_trade_time_against_memory_is_its_key_s_alone(key, monkeypatch):
    monkeypatch.setattr(build, "Sampler", sampler := Mock())
    three = dict.fromkeys(["GUIDANCE_CHECKPOINTING", "CHANNELS_LAST", "COMPILE"], False)
    build.build_sampler(settings(**three | {key: True}), torch.device("cpu"), limit=1)
    assert astuple(sampler.call_args.args[0].tuning) == tuple(each == key for each in three)


def test_the_gradient_s_decoder_has_the_type_of_the_numbers_of_what_draws(monkeypatch):
    monkeypatch.setattr(build, "load_tiny_autoencoder", load := Mock())
    device = torch.device("cpu")
    assert build.load_gradient_decoder(settings(GUIDANCE_DECODER="''"), device) is None
    build.load_gradient_decoder(settings(GUIDANCE_DECODER="tiny", DTYPE="bfloat16"), device)
    load.assert_called_once_with("tiny", "bfloat16", device)


def test_a_model_of_several_is_of_its_own_revision_or_else_of_that_of_all(monkeypatch):
    monkeypatch.setattr(build, "Sampler", sampler := Mock())
    models = [["a", 1, "v2"], ["b", 1]]
    build.build_sampler(settings(MODELS=models, MODEL="''", REVISION="v1"), torch.device("cpu"), limit=1)
    sources = [call.args[0] for call in sampler.call_args_list]
    assert [(source.name, source.revision) for source in sources] == [("a", "v2"), ("b", "v1")]


def test_images_are_drawn_as_the_settings_say_and_embeddings_kept_apart_by_all_that_they_depend_on(
    monkeypatch, tmp_path
):
    keys, sampler, embeddings = set(), Mock(), Mock()
    monkeypatch.setattr(build, "EmbeddingFolder", lambda *given: keys.add(given))
    monkeypatch.setattr(build, "PromptEmbeddings", embeddings)
    monkeypatch.setattr(build, "Sampler", sampler)
    others = {"MODEL": "x", "REVISION": "x", "DTYPE": "float32", "MAX_SEQUENCE_LENGTH": 99, "CFG_SCALE": 1.0}
    for change in ({}, *({key: value} for key, value in others.items())):
        cfg = settings(EMBEDDING_CACHE="cache", IMAGE_SIZE=96, STEPS=7, **change)
        build.build_sampler(cfg, torch.device("cpu"), limit=3)
    assert len(keys) == 6 and {folder for folder, _ in keys} == {str(REPOSITORY / "cache")}
    assert [call.args[1:3] for call in embeddings.call_args_list] == (
        [(True, 256)] * 4 + [(True, 99), (False, 256)]
    )
    scales = [5.0] * 5 + [1.0]
    pipelines = [call.args[0] for call in sampler.call_args_list]
    assert [(p.name, p.revision, p.dtype) for p in pipelines[1:4]] == [
        ("x", pipelines[0].revision, pipelines[0].dtype),
        (pipelines[0].name, "x", pipelines[0].dtype),
        (pipelines[0].name, pipelines[0].revision, "float32"),
    ]
    assert [call.args[2:] for call in sampler.call_args_list] == [(Sampling(96, 7, s), 3) for s in scales]
    for file in ("vae/x", "text_encoder_2/x", "tokenizer/x", "text_encoder_2/x"):  # of a model in a folder
        (tmp_path / file).parent.mkdir(exist_ok=True)
        with open(tmp_path / file, "ab") as opened:
            opened.write(b"x")
        cfg = settings(EMBEDDING_CACHE="cache", MODEL=str(tmp_path))
        build.build_sampler(cfg, torch.device("cpu"), limit=3)
    assert len(keys) == 6 + 4
    os.utime(tmp_path / "tokenizer/x", (0, 0))  # another file of the same size
    build.build_sampler(cfg, torch.device("cpu"), limit=3)
    assert len(keys) == 6 + 5
