"""What the loader of pipelines says when it cannot."""

import json
import shutil
from contextlib import nullcontext

import diffusers
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file

from exchange.errors import UserError
from generator.pipelines import PipelineSource, Tuning, choose_device, load_tiny_autoencoder

CPU = torch.device("cpu")
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"


def source(name, dtype="float32"):
    return PipelineSource(str(name), "main", dtype, CPU)


@pytest.mark.parametrize("linked", [True, False])
def test_gated_model_names_the_page_and_the_variable(monkeypatch, linked):
    def refuse(*_, **options):
        try:
            raise GatedRepoError.__new__(GatedRepoError)
        except GatedRepoError as error:
            raise OSError(f"{SD3} is not a valid model identifier") from (error if linked else None)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", refuse)
    with pytest.raises(UserError, match=f"https://huggingface.co/{SD3}.*HF_TOKEN"):
        source(SD3).load()


def test_token_comes_from_the_environment(monkeypatch):
    seen = {}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        diffusers.DiffusionPipeline, "load_config", lambda _, **given: seen.update(given) or {}
    )
    assert PipelineSource(SD3, "v2", "float32", CPU).index == {}
    assert seen == {"revision": "v2", "token": "hf_secret"}


def test_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        source(tmp_path).load()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    with pytest.raises(UserError, match=str(tmp_path)):
        source(tmp_path).load()


def test_a_pipeline_of_pixels_is_refused_by_its_kind(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "IFPipeline", "unet": ["a", "b"]}))
    with pytest.raises(UserError, match=r"\(IFPipeline\) has no VAE"):
        source(tmp_path).check()


@pytest.mark.parametrize("damage", ["only .bin", "cut off", "a text for a number"])
@pytest.mark.parametrize(("part", "key"), [("text_encoder", "hidden_size"), ("transformer", "num_layers")])
def test_damaged_part_of_a_pipeline_is_named(part, key, damage, saved_sd3, tmp_path):
    shutil.copytree(saved_sd3, tmp_path / "sd3")
    (weights,) = (tmp_path / "sd3" / part).glob("*.safetensors")
    if damage == "only .bin":
        torch.save(load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
    elif damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        config = tmp_path / "sd3" / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {key: "x"}))
    with pytest.raises(UserError, match=r"GENERATOR\.MODEL '.*sd3' cannot be loaded .*\.safetensors only"):
        source(tmp_path / "sd3").load()


def test_name_that_cannot_be_a_repository_is_told():
    with pytest.raises(UserError, match="GENERATOR.MODEL 'no/such/model'"):
        source("no/such/model").load()
    with pytest.raises(UserError, match="GENERATOR.GUIDANCE_DECODER 'no/such/model'"):
        load_tiny_autoencoder("no/such/model", "float32", CPU)


def test_unknown_precision_is_refused_at_once():
    with pytest.raises(UserError, match="GENERATOR.DTYPE"):
        source(SD3, "float8")


@pytest.mark.parametrize("gpu", [2, -1])
def test_gpu_that_is_not_there_gets_the_list_of_those_that_are(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"model {index}")
    with pytest.raises(UserError, match=rf"no GPU {gpu}:.*0 \(model 0\), 1 \(model 1\)"):
        choose_device(gpu)
    assert [choose_device(number) for number in (0, 1)] == [torch.device("cuda", n) for n in (0, 1)]


def test_without_any_gpu_the_cpu_draws(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(3) == CPU


TEXT = {f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2")}


@pytest.mark.parametrize(
    ("part", "parts"),
    [
        ("load", {*TEXT, "scheduler", "transformer", "vae"}),
        (
            "load_encoders",
            {*TEXT, "scheduler", "transformer"},
        ),  # which tells the width of a T5 that there is not
        ("load_painter", {"scheduler", "transformer", "vae"}),
    ],
)
def test_no_more_is_loaded_than_is_asked_for_and_frozen_once_and_for_all(saved_sd3, part, parts):
    pipeline = getattr(source(saved_sd3), part)()
    assert {name for name, component in pipeline.components.items() if component is not None} == parts
    networks = [network for network in pipeline.components.values() if isinstance(network, torch.nn.Module)]
    assert networks and not any(p.requires_grad for network in networks for p in network.parameters())


@pytest.mark.parametrize("asked", [True, False])
def test_activations_are_recomputed_and_convolutions_have_their_layout_where_that_is_asked(saved_sd3, asked):
    tuning = Tuning(checkpointing=True) if asked else Tuning()
    pipeline = PipelineSource(str(saved_sd3), "main", "float32", CPU, tuning).load_painter()
    assert pipeline.transformer.is_gradient_checkpointing == pipeline.vae.is_gradient_checkpointing == asked
    pipeline = PipelineSource(str(saved_sd3), "main", "float32", CPU, Tuning(channels_last=asked)).load()
    weight = pipeline.vae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == asked


@pytest.mark.parametrize("overflows", [True, False])
def test_an_autoencoder_that_overflows_in_float16_is_refused_there(overflows, saved_sd3, tmp_path):
    shutil.copytree(saved_sd3, tmp_path / "sd3")
    config = tmp_path / "sd3/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": overflows}))
    with pytest.raises(UserError, match="overflows in float16") if overflows else nullcontext():
        source(tmp_path / "sd3", "float16").load_painter()
    assert source(tmp_path / "sd3", "bfloat16").load_painter().vae.dtype == torch.bfloat16
