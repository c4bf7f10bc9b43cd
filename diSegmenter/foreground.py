"""Foreground models: images in, alpha masks out."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageSegmentation, Sam2Model

from diSegmenter.onnx_network import IMAGENET_MEAN, IMAGENET_STD, OnnxReading, load_onnx_network
from exchange.config import REPOSITORY, model_source
from exchange.errors import UserError

_log = logging.getLogger(__name__)
_OURS = REPOSITORY / "assets"
_OF_BIREFNET = OnnxReading()


class MattingForeground:
    """A network like BiRefNet (Zheng et al., 2024), whose last output holds scores of the foreground.

    Args:
        network: takes float (N, 3, H, W), normalised; returns a sequence of tensors or one tensor, the last of
            which is (N, 1, H', W').
        input_size: (H, W).
        mean, std: of red, green and blue, in [0, 1], by which the input is normalised (default: ImageNet's).
        opacity: makes opacities in [0, 1] of scores, float32 (N, 1, H', W') (default: they are logits).
    """

    def __init__(
        self,
        network: nn.Module,
        input_size: tuple[int, int],
        device: torch.device,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        opacity: Callable[[torch.Tensor], torch.Tensor] = torch.sigmoid,
    ) -> None:
        # A third faster in convolutions on a CPU, and what half precision on a GPU wants.
        network = network.to(device, memory_format=torch.channels_last)
        self._network = network.eval().requires_grad_(False)
        self._input_size = input_size
        self._device = device
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)
        self._opacity = opacity

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Alpha masks, uint8 (H, W), of ``images``, uint8 (H, W, 3 or more) each of its own size.

        Truncated to eight bits, as in the reference: below 1/255 a pixel is not of the object.
        """
        groups = same_size(images)
        inputs = torch.empty(len(images), 3, *self._input_size, device=self._device)
        for members in groups:
            pixels = torch.from_numpy(np.stack([images[i][..., :3] for i in members])).to(self._device)
            inputs[members] = _resized(pixels.permute(0, 3, 1, 2).float() / 255, self._input_size)
        inputs = ((inputs - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.float16, enabled=self._device.type == "cuda"):
            outputs = self._network(inputs)
        scores = outputs if isinstance(outputs, torch.Tensor) else outputs[-1]
        opacity = self._opacity(scores.float())
        alphas = {}
        for members in groups:
            resized = _resized(opacity[members], images[members[0]].shape[:2])[:, 0]
            alphas |= zip(members, resized.mul(255).byte().cpu().numpy(), strict=True)
        return [alphas[i] for i in range(len(images))]


Prompt = Callable[[int], dict[str, torch.Tensor]]
"""The side S of an image in pixels to what SAM 2 is asked: arguments of the model, each for a batch of one."""


def inner_box(side: int) -> dict[str, torch.Tensor]:
    """A box that covers nearly all of the image, with a margin of a twentieth of its side."""
    near, far = 0.05 * side, 0.95 * side
    return {"input_boxes": torch.tensor([[[near, near, far, far]]])}


def corners(side: int) -> dict[str, torch.Tensor]:
    """The four pixels in the corners as points of what is sought (DiverGen, with its margin of 0)."""
    last = side - 1.0
    points = torch.tensor([[[[0.0, 0.0], [last, 0.0], [0.0, last], [last, last]]]])
    return {"input_points": points, "input_labels": torch.ones(1, 1, 4, dtype=torch.int64)}


class PromptedSam2(nn.Module):
    """SAM 2 as a foreground network: of the masks that it offers for a prompt, the one that it trusts most.

    Takes float (N, 3, S, S) of the model's own S; returns logits (N, 1, S / 4, S / 4).

    Args:
        prompt: what it is asked.
        of_background: the prompt is about the background, and the object is the rest.
    """

    def __init__(self, model: nn.Module, prompt: Prompt = inner_box, of_background: bool = False) -> None:
        super().__init__()
        self.model = model
        self._prompt = prompt
        self._sign = -1.0 if of_background else 1.0  # of logits: sigmoid(-x) = 1 - sigmoid(x)

    @property
    def side(self) -> int:
        """S."""
        return self.model.config.prompt_encoder_config.image_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        count, device = len(pixels), pixels.device
        asked = {
            name: value.to(device).expand(count, *value.shape[1:])
            for name, value in self._prompt(pixels.shape[-1]).items()
        }
        output = self.model(pixel_values=pixels, **asked)
        best = output.iou_scores[:, 0].argmax(-1)
        return self._sign * output.pred_masks[torch.arange(count, device=device), 0, best][:, None]


_SAM2: dict[str, Callable[[nn.Module], PromptedSam2]] = {
    "sam2": PromptedSam2,
    "sam2_background": partial(PromptedSam2, prompt=corners, of_background=True),
}


def image_alpha(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The masks that layered generators bring along: the alpha channels of uint8 (H, W, 4) images."""
    return [image[..., 3] for image in images]


def load_foreground(
    choice: str,
    name: str,
    revision: str,
    trust_remote_code: bool,
    input_size: int,
    device: torch.device,
    onnx_reading: OnnxReading = _OF_BIREFNET,
) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Loads the foreground model ``name``: see ``load_network``, and ``find_onnx`` for what is in an ONNX file.

    Args:
        choice: ``matting``, ``onnx``, ``sam2``, ``sam2_background`` or ``alpha``, see SEGMENTER.FOREGROUND.
        input_size: pixels of a side of the square that a matting network sees, unless its ONNX file fixes it.
        onnx_reading: what an ONNX file does not say of its network.

    Raises:
        UserError: the choice does not exist, or the model cannot be loaded.
    """
    if choice == "alpha":
        return image_alpha
    if choice == "onnx":
        onnx, size = load_onnx_network(name, revision, onnx_reading.output, input_size, device)
        return MattingForeground(
            onnx, size, device, onnx_reading.mean, onnx_reading.std, onnx_reading.opacity
        )
    if choice != "matting" and choice not in _SAM2:
        raise UserError(
            f"SEGMENTER.FOREGROUND is {choice!r}: it takes matting, onnx, {', '.join(_SAM2)} or alpha"
        )
    network = load_network(choice, name, revision, trust_remote_code)
    side = network.side if isinstance(network, PromptedSam2) else input_size
    return MattingForeground(network, (side, side), device)


def load_network(choice: str, name: str, revision: str, trust_remote_code: bool) -> nn.Module:
    """Loads the network ``name``, a folder or a hub name (with the token in HF_TOKEN, if it is set), in float32.

    Code that comes with the weights runs only for folders in the repository's ``assets``, or with
    ``trust_remote_code``.

    Args:
        choice: ``matting``, ``sam2`` or ``sam2_background``.

    Raises:
        UserError: it cannot be loaded.
    """
    source = model_source(name)
    trusted = trust_remote_code or _is_ours(source)
    if trust_remote_code and not _is_ours(source):
        _log.warning("SEGMENTER.TRUST_REMOTE_CODE is set: %s at %s may run its own code here", name, revision)
    try:
        if choice in _SAM2:
            return _SAM2[choice](Sam2Model.from_pretrained(source, revision=revision).float())
        return AutoModelForImageSegmentation.from_pretrained(
            source, revision=revision, trust_remote_code=trusted
        ).float()
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"the foreground model {name} brings Python code of its own, which would run on this machine "
                "with your rights: take its ONNX form (SEGMENTER.FOREGROUND: onnx), or read that code, pin "
                "SEGMENTER.FOREGROUND_REVISION to the commit that you read, and set SEGMENTER.TRUST_REMOTE_CODE: true"
            ) from error
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"the foreground model {name} does not load ({first_line}): correct "
            "SEGMENTER.FOREGROUND_MODEL to a folder or a hub name that you can reach"
        ) from error


def same_size(images: Sequence[np.ndarray]) -> list[list[int]]:
    """The places of ``images`` in groups of equal height and width, so that a group goes through as one batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.shape[:2], []).append(place)
    return list(groups.values())


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Float (N, C, *, *) as (N, C, *size)."""
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _is_ours(source: str) -> bool:
    return Path(source).resolve().is_relative_to(_OURS)
