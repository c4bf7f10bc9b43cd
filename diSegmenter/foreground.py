"""The foreground model: images in, alpha masks out."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageSegmentation

from exchange.config import REPOSITORY, model_source
from exchange.errors import UserError

_log = logging.getLogger(__name__)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_OURS = REPOSITORY / "assets"


class MattingForeground:
    """A network like BiRefNet (Zheng et al., 2024), whose last output holds the logits of the foreground.

    Args:
        network: takes float (N, 3, S, S), normalised as for ImageNet; returns a sequence of tensors or one
            tensor, the last of which is (N, 1, S', S').
        input_size: S.
    """

    def __init__(self, network: nn.Module, input_size: int, device: torch.device) -> None:
        self._network = network.to(device).eval()
        self._input_size = input_size
        self._device = device
        self._mean = torch.tensor(_IMAGENET_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(_IMAGENET_STD, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Alpha masks, uint8 (H, W), of ``images``, uint8 (H, W, 3 or more) each of its own size."""
        inputs = torch.stack([self._prepared(image) for image in images])
        with torch.autocast(self._device.type, torch.float16, enabled=self._device.type == "cuda"):
            outputs = self._network(inputs)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[-1]
        opacity = logits.float().sigmoid()
        return [
            _resized(opacity[i : i + 1], image.shape[:2])[0, 0].mul(255).round().byte().cpu().numpy()
            for i, image in enumerate(images)
        ]

    def _prepared(self, image: np.ndarray) -> torch.Tensor:
        pixels = torch.tensor(image[..., :3], device=self._device).permute(2, 0, 1).float() / 255
        square = _resized(pixels[None], (self._input_size, self._input_size))[0]
        return (square - self._mean) / self._std


def load_matting_foreground(
    name: str, revision: str, trust_remote_code: bool, input_size: int, device: torch.device
) -> MattingForeground:
    """Loads the model ``name``, a folder or a hub name (with the token in HF_TOKEN, where one is set).

    Code that comes with the weights runs only for folders in the repository's ``assets``, or with
    ``trust_remote_code``. Raises UserError where the model cannot be loaded.
    """
    source = model_source(name)
    trusted = trust_remote_code or _is_ours(source)
    if trust_remote_code and not _is_ours(source):
        _log.warning("SEGMENTER.TRUST_REMOTE_CODE is set: %s at %s may run its own code here", name, revision)
    try:
        network = AutoModelForImageSegmentation.from_pretrained(
            source, revision=revision, trust_remote_code=trusted
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"the foreground model {name} brings Python code of its own, which would run on this machine "
                "with your rights: read that code, pin SEGMENTER.FOREGROUND_REVISION to the commit that you "
                "read, and set SEGMENTER.TRUST_REMOTE_CODE: true"
            ) from error
        raise UserError(
            f"the foreground model {name} does not load ({_first_line(error)}): correct "
            "SEGMENTER.FOREGROUND_MODEL to a folder or a hub name that you can reach"
        ) from error
    return MattingForeground(network.float(), input_size, device)


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Float (N, C, *, *) as (N, C, *size)."""
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _is_ours(source: str) -> bool:
    return Path(source).resolve().is_relative_to(_OURS)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
