import importlib.util
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from diSegmenter.foreground import load_foreground
from exchange.errors import UserError
from tests.diSegmenter.small_models import save_foreground
from tools import export_matting
from tools.digits import pictures, samples
from tools.matting_to_onnx import as_onnx

DIGITS = "configs/digits/MRCA_digits.yaml"
FOREGROUND = "assets/digits/foreground"


def test_the_embedded_network_gives_the_same_masks_as_onnx_to_one_grey_level(call, tmp_path, capsys):
    path = str(tmp_path / "digits.onnx")
    call(export_matting, path, "--config", DIGITS)
    assert capsys.readouterr().out == f"{path}\n"
    batch, *size = onnxruntime.InferenceSession(path).get_inputs()[0].shape
    assert isinstance(batch, str) and size == [3, 64, 64]
    drawn = pictures.with_masks(samples.split()["val"], 40, np.random.default_rng(0))
    images = [np.asarray(picture) for picture, _, _ in drawn] + [np.full((50, 70, 3), 255, np.uint8)]
    ours, onnx = (
        load_foreground(choice, name, "main", False, 64, torch.device("cpu"))(images)
        for choice, name in (("matting", FOREGROUND), ("onnx", path))
    )
    assert np.mean([mask.max() > 250 for mask in ours]) > 0.9
    for mask, other in zip(ours, onnx, strict=True):
        assert np.abs(mask.astype(int) - other).max() <= 1


def test_a_network_of_others_is_exported_only_with_the_users_word(monkeypatch, tmp_path, call):
    theirs, out = save_foreground(tmp_path / "theirs"), tmp_path / "theirs.onnx"
    settings = ["SEGMENTER.FOREGROUND_MODEL", theirs, "SEGMENTER.INPUT_SIZE", "32"]
    with pytest.raises(UserError, match="SEGMENTER.TRUST_REMOTE_CODE: true"):
        call(export_matting, out, "--config", DIGITS, *settings)
    assert not out.exists()
    seen = []
    monkeypatch.setattr("tools.matting_to_onnx.as_onnx", lambda *args: seen.append(args) or b"a network")
    call(export_matting, out, "--config", DIGITS, *settings, "SEGMENTER.TRUST_REMOTE_CODE", "True")
    assert out.read_bytes() == b"a network"
    assert isinstance(seen[0][0], nn.Module) and seen[0][1] == 32


class SeveralOutputs(nn.Module):
    """A coarse side output first, as BiRefNet and its like have them."""

    def forward(self, pixels):
        return [pixels[:, :1, ::2, ::2], 3 * pixels[:, 1:2]]


def test_of_a_network_with_several_outputs_the_last_one_is_exported(monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", exported := MagicMock())  # which takes seconds
    as_onnx(SeveralOutputs(), 8)
    network, (pixels,) = exported.call_args.args
    torch.testing.assert_close(network(pixels + 2), torch.full((len(pixels), 1, 8, 8), 6.0))


class OnlyPairs(nn.Module):
    """Does not do for any batch."""

    def forward(self, pixels):
        return pixels.reshape(2, 1, 3 * 8, 8)


def test_a_network_that_torch_cannot_export_is_one_sentence():
    with pytest.raises(
        UserError, match="torch cannot export the network OnlyPairs .* 8 x 8 pixels"
    ) as caught:
        as_onnx(OnlyPairs(), 8)
    assert "\n" not in str(caught.value)


def test_a_network_that_torch_exports_for_one_size_of_batch_alone_is_refused(monkeypatch):
    output = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [2, 1, 8, 8])
    graph = onnx.helper.make_graph([], "network", [], [output])
    program = SimpleNamespace(model_proto=onnx.helper.make_model(graph))
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **more: program)
    with pytest.raises(UserError, match="cannot export the network SeveralOutputs for batches of any size"):
        as_onnx(SeveralOutputs(), 8)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_what_cannot_be_exported_is_one_sentence(missing, monkeypatch, tmp_path, call):
    out = tmp_path / "out.onnx"
    with pytest.raises(UserError, match="give a name that ends in .onnx"):
        call(export_matting, tmp_path / "out.pt", "--config", DIGITS)
    with pytest.raises(UserError, match="has 0 entries matting in SEGMENTER.FOREGROUND"):
        call(export_matting, out, "--config", DIGITS, "SEGMENTER.FOREGROUND", "sam2")
    with pytest.raises(UserError, match="has 2 entries matting in SEGMENTER.FOREGROUND"):
        call(export_matting, out, "--config", DIGITS, "SEGMENTER.FOREGROUND", "['matting', 'matting']")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(UserError, match=f"needs {missing}, which is not installed"):
        call(export_matting, out, "--config", DIGITS)
    assert not out.exists()
