"""Matting networks in ONNX files, computed by onnxruntime.

Such a file holds operations and numbers: no code comes along that would run with the user's rights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from diSegmenter.onnx_file import find_onnx
from exchange.errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

_log = logging.getLogger(__name__)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_GPU = "CUDAExecutionProvider"
_OTHER_FILE = "take the file of a matting network for SEGMENTER.FOREGROUND_MODEL"


def stretched(scores: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) with the smallest score of each mask as 0 and its largest as 1; equal ones are 0."""
    low, high = scores.amin((1, 2, 3), keepdim=True), scores.amax((1, 2, 3), keepdim=True)
    return (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)


RESCALE = {"sigmoid": torch.sigmoid, "minmax": stretched}


@dataclass(frozen=True)
class OnnxReading:
    """What an ONNX file does not say of its network: SEGMENTER.ONNX_*; as it stands here for BiRefNet and logits.

    Args:
        mean, std: of red, green and blue, in [0, 1], by which the input is normalised.
        output: number of the output that is the mask; negative ones count from the end.
        rescale: steps of RESCALE that make opacities in [0, 1] of the mask.

    Raises:
        UserError: a number or a step is none of these.
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    output: int = 0
    rescale: Sequence[str] = ("sigmoid",)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or not np.isfinite(self.mean).all():
            raise UserError(f"SEGMENTER.ONNX_MEAN is {list(self.mean)}: it takes three numbers")
        if len(self.std) != 3 or not np.isfinite(self.std).all() or min(self.std) <= 0:
            raise UserError(f"SEGMENTER.ONNX_STD is {list(self.std)}: it takes three numbers above 0")
        if unknown := [step for step in self.rescale if step not in RESCALE]:
            raise UserError(
                f"SEGMENTER.ONNX_RESCALE has {unknown[0]!r}: it takes {' and '.join(RESCALE)}, in order, or nothing"
            )

    def opacity(self, scores: torch.Tensor) -> torch.Tensor:
        for step in self.rescale:
            scores = RESCALE[step](scores)
        return scores


class OnnxNetwork(nn.Module):
    """An ONNX file as a foreground network: takes float (N, 3, H, W), returns float32 scores (N, 1, H', W').

    A file that takes any number of images gets all of them, one with a fixed number so many at a time.

    Args:
        session: of onnxruntime, with one input (batch, 3, height, width).
        output: name of the output that is the mask.
        threads: of which each has as many images as the file takes at a time.

    Raises:
        UserError: when called, where the output is no mask of each image.
    """

    def __init__(self, session: InferenceSession, output: str, threads: int) -> None:
        super().__init__()
        (given,) = session.get_inputs()
        self._session, self._input, self._output = session, given.name, output
        self._dtype, self._batch = _TYPES[given.type], _fixed(given.shape[0])
        self._threads = ThreadPoolExecutor(threads)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = np.ascontiguousarray(pixels.cpu().numpy(), dtype=self._dtype)
        at_once = self._batch or len(images)
        parts = [images[at : at + at_once] for at in range(0, len(images), at_once)]
        if missing := at_once - len(parts[-1]):
            parts[-1] = np.pad(parts[-1], ((0, missing), (0, 0), (0, 0), (0, 0)))
        masks = np.concatenate(list(self._threads.map(self._run, parts)))[: len(images)]
        return torch.from_numpy(masks.astype(np.float32, copy=False)).to(pixels.device)

    def _run(self, images: np.ndarray) -> np.ndarray:
        (masks,) = self._session.run([self._output], {self._input: images})
        if masks.ndim != 4 or masks.shape[:2] != (len(images), 1):
            raise UserError(
                f"the output {self._output} of the ONNX network has the shape {masks.shape} for {len(images)} images "
                f"instead of ({len(images)}, 1, height, width): correct SEGMENTER.ONNX_OUTPUT, or {_OTHER_FILE}"
            )
        return masks


def load_onnx_network(
    name: str, revision: str, output: int, input_size: int, device: torch.device
) -> tuple[OnnxNetwork, tuple[int, int]]:
    """The network in the file that ``name`` means (see ``find_onnx``), and the height and width that it takes.

    Args:
        output: number of the output that is the mask.
        input_size: pixels of a side, where the file leaves it open.

    Raises:
        UserError: there is no such file, it is no ONNX file or that of another kind of network, it reads data from
            outside of its folder, or onnxruntime is not installed.
    """
    try:
        import onnxruntime  # an optional package
        from onnxruntime.capi import onnxruntime_pybind11_state as library
    except ModuleNotFoundError as error:
        raise UserError(
            "SEGMENTER.FOREGROUND: onnx needs onnxruntime, which is not installed: pip install onnxruntime, or "
            "onnxruntime-gpu for a GPU"
        ) from error
    path = find_onnx(name, revision)
    refusals = tuple(
        kind for kind in vars(library).values() if isinstance(kind, type) and issubclass(kind, Exception)
    )
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device.type == "cuda" and _GPU in onnxruntime.get_available_providers():
        providers.insert(0, (_GPU, {"device_id": device.index or 0}))

    def open_with(threads: int) -> InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is raised
        return onnxruntime.InferenceSession(path, options, providers=providers)

    try:
        session = open_with(1)
        given, mask = _image_input(session, path), _mask_output(session, output, path)
        threads = torch.get_num_threads()
        if _fixed(given.shape[0]) is None:
            session, threads = open_with(threads), 1
    except refusals as error:
        raise UserError(
            f"{path} is no ONNX network that onnxruntime takes, with its data in its own folder ({_line(error)}): "
            f"{_OTHER_FILE}"
        ) from error
    if _GPU in session.get_providers():
        threads = 1  # an image at a time fills it
    elif device.type == "cuda":
        _log.warning(
            "onnxruntime, as installed here, finds no GPU, so that the processor cuts out: pip install onnxruntime-gpu "
            "in place of onnxruntime"
        )
    network = OnnxNetwork(session, mask, threads)
    height, width = (_fixed(size) or input_size for size in given.shape[2:])
    try:
        network(torch.zeros(1, 3, height, width))  # what the file leaves open shows only now
    except refusals as error:
        raise UserError(
            f"{path} does not compute an image of {height} x {width} pixels ({_line(error)}): correct "
            f"SEGMENTER.INPUT_SIZE, or {_OTHER_FILE}"
        ) from error
    return network, (height, width)


def _image_input(session: InferenceSession, path: str) -> NodeArg:
    inputs = session.get_inputs()
    if len(inputs) == 1 and inputs[0].type in _TYPES and len(inputs[0].shape) == 4:
        if _fixed(inputs[0].shape[1]) in (3, None):
            return inputs[0]
    shown = ", ".join(f"{given.name} {given.type} {given.shape}" for given in inputs)
    raise UserError(
        f"{path} is an ONNX network of another kind: it takes {shown[:300] or 'nothing'} instead of one "
        f"tensor(float) (batch, 3, height, width): {_OTHER_FILE}"
    )


def _mask_output(session: InferenceSession, number: int, path: str) -> str:
    outputs = session.get_outputs()
    if not -len(outputs) <= number < len(outputs):
        raise UserError(
            f"SEGMENTER.ONNX_OUTPUT is {number}, but {path} has {len(outputs)} outputs, the first of which is 0: "
            "correct the key"
        )
    if outputs[number].type not in _TYPES:
        raise UserError(
            f"output {number} of {path} is a {outputs[number].type}, which is no mask: correct SEGMENTER.ONNX_OUTPUT, "
            f"or {_OTHER_FILE}"
        )
    return outputs[number].name


def _fixed(size: int | str | None) -> int | None:
    """A size that the file fixes; None where a name, or nothing, stands in its place."""
    return size if isinstance(size, int) and size > 0 else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
