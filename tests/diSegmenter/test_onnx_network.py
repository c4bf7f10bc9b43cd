"""Foreground networks in ONNX files: what is read of a file, what is refused, and that the masks are torch's.

MRCA_MATTING_ONNX names the file of a published network, normalised as IS-Net is, for the last test.
"""

import logging
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.datasets import load_sample_image

from diSegmenter import onnx_network
from diSegmenter.foreground import load_foreground
from diSegmenter.onnx_network import OnnxNetwork, OnnxReading, load_onnx_network
from exchange.errors import UserError
from tests.diSegmenter.conftest import disc_image
from tests.diSegmenter.small_onnx import (
    FLOAT,
    save_channels,
    save_dark,
    save_onnx,
    save_weights,
    save_with_data_at,
)
from tests.diSegmenter.test_foreground import resized

CPU = torch.device("cpu")
IMAGES = [
    disc_image(8),
    disc_image(15, size=(64, 32)),
    disc_image(4, size=(33, 90)),
    disc_image(12),
    disc_image(9),
]
FIXED = (1, 3, 32, 32)


def masks(path, images=IMAGES, reading=None, input_size=32):
    return load_foreground("onnx", path, "main", False, input_size, CPU, reading or OnnxReading())(images)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (("batch", 3, "height", "width"), FLOAT),
        ((None, None, None, None), FLOAT),
        (("batch", 3, 32, 32), TensorProto.DOUBLE),
        (FIXED, FLOAT),
        ((4, 3, 32, 32), FLOAT),
        (FIXED, TensorProto.FLOAT16),
    ],
)
def test_masks_are_those_of_the_torch_form_to_one_grey_level_whatever_batch_and_type_the_file_has(
    shape, kind, tmp_path, foreground_folder
):
    expected = load_foreground("matting", foreground_folder, "main", True, 32, CPU)(IMAGES)
    found = masks(save_dark(tmp_path / "dark.onnx", shape, kind))
    grey_levels = 1 if kind != TensorProto.FLOAT16 else 4
    for mask, other, image in zip(found, expected, IMAGES, strict=True):
        assert mask.dtype == np.uint8 and mask.shape == image.shape[:2] and mask.max() > 250
        assert np.abs(mask.astype(int) - other).max() <= grey_levels


@pytest.mark.parametrize(("shape", "size"), [((1, 3, 24, 40), (24, 40)), (("n", 3, "h", "w"), (16, 16))])
def test_the_network_sees_the_file_s_size_normalised_by_the_keys_and_the_output_that_they_name_is_the_mask(
    shape, size, tmp_path
):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 4), dtype=np.uint8)
    path = save_channels(tmp_path / "channels.onnx", shape)
    mean, std = (0.1, -0.5, 0.25), (1.5, 2.0, 0.75)
    for output, channel in ((0, 0), (1, 1), (-1, 2), (-3, 0)):
        (mask,) = masks(path, [image], OnnxReading(mean, std, output, ()), input_size=16)
        seen = (resized(image[..., channel] / 255, size) - mean[channel]) / std[channel]
        expected = 255 * np.clip(resized(seen, (60, 80)), 0, 1)
        assert (mask <= expected + 1e-2).all() and (expected - mask).max() < 1.01


def test_scores_are_rescaled_by_the_steps_in_their_order_and_equal_ones_show_nothing():
    scores = torch.tensor([[-1.0, 0.0, 3.0], [7.0, 7.0, 7.0]]).view(2, 1, 1, 3)
    sigmoid = 1 / (1 + np.exp([1.0, 0.0, -3.0]))
    for steps, expected in (
        (["sigmoid"], sigmoid),
        (["minmax"], [0, 0.25, 1]),
        (["sigmoid", "minmax"], (sigmoid - sigmoid[0]) / (sigmoid[2] - sigmoid[0])),
        (["minmax", "sigmoid"], 1 / (1 + np.exp([0, -0.25, -1]))),
        ([], [-1, 0, 3]),
    ):
        found = OnnxReading(rescale=steps).opacity(scores)
        np.testing.assert_allclose(found[0].ravel(), expected, atol=1e-6)
    assert not OnnxReading(rescale=["minmax"]).opacity(scores)[1].any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.5]}, "SEGMENTER.ONNX_MEAN is .* three numbers"),
        (
            {"std": [0.5, float("inf"), 1.0]},
            r"SEGMENTER.ONNX_STD is \[0.5, inf, 1.0\]: .* three numbers above 0",
        ),
        ({"std": [0.5, 0.0, 0.5]}, "SEGMENTER.ONNX_STD is .* three numbers above 0"),
        (
            {"rescale": ["sigmoid", "softmax"]},
            "SEGMENTER.ONNX_RESCALE has 'softmax': it takes sigmoid and minmax",
        ),
    ],
)
def test_keys_that_mean_nothing_are_named(values, message):
    with pytest.raises(UserError, match=message):
        OnnxReading(**values)


class Session:
    """An onnxruntime session whose mask is the first channel; says how large its batches were."""

    def __init__(self, batch, before=lambda: None):
        self.shape, self.batches, self.before = [batch, 3, 4, 4], [], before

    def get_inputs(self):
        return [SimpleNamespace(name="pixels", type="tensor(float)", shape=self.shape)]

    def run(self, names, given):
        self.before()
        self.batches.append(len(given["pixels"]))
        return [given["pixels"][:, :1].copy()]


@pytest.mark.parametrize(
    ("batch", "batches"), [("n", [5]), (None, [5]), (1, [1] * 5), (2, [2] * 3), (8, [8])]
)
def test_a_network_gets_all_images_at_once_or_as_many_as_its_file_fixes(batch, batches):
    session, pixels = Session(batch), torch.rand(5, 3, 4, 4).to(memory_format=torch.channels_last)
    scores = OnnxNetwork(session, "mask", threads=1)(pixels)
    assert session.batches == batches
    torch.testing.assert_close(scores, pixels[:, :1], rtol=0, atol=0)


def test_images_that_a_file_takes_one_by_one_are_computed_in_threads_side_by_side():
    meeting = threading.Barrier(3, timeout=60)  # broken, unless three runs are under way at once
    session, pixels = Session(1, meeting.wait), torch.rand(6, 3, 4, 4)
    torch.testing.assert_close(OnnxNetwork(session, "mask", threads=3)(pixels), pixels[:, :1])


@pytest.mark.parametrize(("shape", "inside", "beside"), [(FIXED, [1], 3), (("n", 3, 32, 32), [1, 3], 1)])
def test_a_file_with_a_fixed_batch_has_threads_side_by_side_another_all_of_them_inside(
    shape, inside, beside, tmp_path, monkeypatch
):
    path, real, seen = save_dark(tmp_path / "dark.onnx", shape), onnxruntime.InferenceSession, []

    def session(path, options, providers):
        seen.append(options.intra_op_num_threads)
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    pools = []
    monkeypatch.setattr(
        onnx_network, "OnnxNetwork", lambda *args: pools.append(args[2]) or OnnxNetwork(*args)
    )
    load_onnx_network(path, "main", 0, 32, CPU)
    monkeypatch.undo()
    assert (seen, pools) == (inside, [beside])


def test_without_a_gpu_in_onnxruntime_the_processor_does_it_and_says_so(tmp_path, caplog):
    path = save_dark(tmp_path / "dark.onnx", FIXED)
    with caplog.at_level(logging.WARNING):
        network, size = load_onnx_network(path, "main", 0, 99, torch.device("cuda:0"))
    assert "pip install onnxruntime-gpu in place of onnxruntime" in caplog.text
    assert size == (32, 32) and network(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_a_gpu_that_onnxruntime_finds_computes_the_images_of_one_thread(
    device, tmp_path, monkeypatch, caplog
):
    gpu, processor, seen = "CUDAExecutionProvider", "CPUExecutionProvider", []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            seen.append(providers)
            super().__init__(path, options, providers=[processor])

        def get_providers(self):
            return [gpu, processor] if device != "cpu" else [processor]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [gpu, processor])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    path = save_dark(tmp_path / "dark.onnx", FIXED)
    network, _ = load_onnx_network(path, "main", 0, 99, torch.device(device))
    monkeypatch.undo()
    on_gpu = (
        [(gpu, {"device_id": 1})] if device != "cpu" else []
    )  # asked for nothing else where it is not wanted
    assert seen[0] == [*on_gpu, processor] and not caplog.text
    assert network._threads._max_workers == (1 if on_gpu else 3)


def test_without_onnxruntime_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = save_dark(tmp_path / "dark.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime, which is not installed: pip install onnxruntime"):
        masks(path)


def refused(path, message, **values):
    with pytest.raises(UserError, match=message) as caught:
        masks(str(path), IMAGES[:1], OnnxReading(**values))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<!DOCTYPE html>" * 20, "half"])
def test_a_file_that_is_no_onnx_is_refused(data, tmp_path):
    path = tmp_path / "other.onnx"
    whole = open(save_dark(path), "rb").read()
    path.write_bytes(whole[: len(whole) // 2] if data == "half" else data)
    refused(path, "other.onnx is no ONNX network that onnxruntime takes")


IMAGE = (("n", 3, 8, 8), FLOAT)


@pytest.mark.parametrize(
    "inputs",
    [
        [(("n", 3), FLOAT)],
        [((1, 1, 8, 8), FLOAT)],
        [((1, 8, 8, 3), FLOAT)],
        [((1, 3, 8, 8), TensorProto.UINT8)],
        [(("n", 77), TensorProto.INT64)],
        [IMAGE, IMAGE],
        [],
    ],
)
def test_a_network_that_takes_no_image_is_refused(inputs, tmp_path):
    if inputs:
        kind = inputs[0][1]
        path = save_onnx(
            tmp_path / "other.onnx",
            [helper.make_node("Identity", ["pixels"], ["scores"])],
            inputs,
            output_type=kind,
        )
    else:
        value = helper.make_tensor("value", FLOAT, [1], [1.0])
        node = helper.make_node("Constant", [], ["scores"], value=value)
        path = save_onnx(tmp_path / "other.onnx", [node], [])
    refused(path, "other.onnx is an ONNX network of another kind: it takes .* instead of one tensor.float.")


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Identity", ["pixels"], ["scores"]),  # three channels
        helper.make_node("ReduceMean", ["pixels"], ["scores"], axes=[1], keepdims=0),
        helper.make_node("ReduceMean", ["pixels"], ["scores"], axes=[2, 3], keepdims=0),
        helper.make_node("Flatten", ["pixels"], ["scores"], axis=1),
    ],
)
def test_an_output_of_another_shape_is_refused(node, tmp_path):
    path = save_onnx(tmp_path / "other.onnx", [node], [((1, 3, 8, 8), FLOAT)])
    refused(path, "output scores of the ONNX network has the shape .*correct SEGMENTER.ONNX_OUTPUT")


def test_an_output_that_mixes_the_images_of_a_batch_is_refused_where_it_happens(tmp_path):
    node = helper.make_node("ReduceMean", ["pixels"], ["scores"], axes=[0, 1], keepdims=1)
    foreground = load_foreground("onnx", save_onnx(tmp_path / "other.onnx", [node]), "main", False, 32, CPU)
    with pytest.raises(UserError, match=r"has the shape \(1, 1, 32, 32\) for 5 images"):
        foreground(IMAGES)


def test_an_output_that_there_is_not_or_that_is_no_tensor_of_numbers_is_refused(tmp_path):
    path = save_channels(tmp_path / "channels.onnx")
    for number in (3, -4):
        refused(path, f"ONNX_OUTPUT is {number}, but .*channels.onnx has 3 outputs", output=number)
    kind = TensorProto.INT64
    path = save_onnx(
        tmp_path / "s.onnx", [helper.make_node("Shape", ["pixels"], ["scores"])], output_type=kind
    )
    refused(path, "output 0 of .*s.onnx is a tensor.int64., which is no mask")


def test_a_size_that_the_network_cannot_compute_is_named(tmp_path):
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [-1, 1, 50, 50])
    path = save_onnx(
        tmp_path / "other.onnx",
        [helper.make_node("Reshape", ["pixels", "shape"], ["scores"])],
        numbers=[shape],
    )
    refused(path, "does not compute an image of 32 x 32 pixels .*correct SEGMENTER.INPUT_SIZE")


def test_data_beside_the_file_are_read_in_its_folder_only(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside.bin"
    for path in (folder / "weights.bin", outside):
        save_weights(path)
    os.symlink(outside, folder / "link.bin")
    assert load_onnx_network(save_with_data_at(folder / "m.onnx", "weights.bin"), "main", 0, 9, CPU)[1] == (
        4,
        4,
    )
    for location in ("../outside.bin", str(outside), "link.bin", "x/../../outside.bin", "missing.bin"):
        refused(save_with_data_at(folder / "m.onnx", location), "with its data in its own folder")


@pytest.mark.skipif(
    "MRCA_MATTING_ONNX" not in os.environ, reason="MRCA_MATTING_ONNX names no matting network"
)
def test_a_published_network_cuts_the_flower_out_of_its_photograph():
    flower, temple = map(load_sample_image, ("flower.jpg", "china.jpg"))
    reading = OnnxReading((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 0, ("minmax",))
    foreground = load_foreground("onnx", os.environ["MRCA_MATTING_ONNX"], "main", False, 1024, CPU, reading)
    alone, (mask, _) = foreground([flower])[0], foreground([flower, temple])
    np.testing.assert_array_equal(mask, alone)
    assert mask.shape == flower.shape[:2]
    petals = flower[:365, :, 0] > 180  # its background is green, and another flower begins below
    assert np.mean(mask[:365][petals] > 200) > 0.97
    assert np.mean(mask[:, :100] < 50) > 0.95 and 0.1 < np.mean(mask > 128) < 0.6
