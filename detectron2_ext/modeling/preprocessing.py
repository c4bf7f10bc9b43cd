"""From images of any size to one normalised batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImagePreprocessor(nn.Module):
    """Normalises pixel values (0-255) once and pads below and to the right with the mean.

    Args:
        pixel_mean, pixel_std: per channel, in the order and range (0-255) of the images.
        size_divisibility: the padded height and width are multiples of it.
    """

    def __init__(
        self, pixel_mean: Sequence[float], pixel_std: Sequence[float], size_divisibility: int = 32
    ) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Images (3, H_n, W_n), uint8 or float in 0-255, to (N, 3, H, W) and the sizes before padding."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height = self._padded(max(height for height, _ in sizes))
        width = self._padded(max(width for _, width in sizes))
        batch = self.pixel_mean.new_zeros(len(images), 3, height, width)
        for target, image, (h, w) in zip(batch, images, sizes, strict=True):
            target[:, :h, :w] = self._normalize(image.to(self.device, non_blocking=True))
        return batch, sizes

    def from_batch(self, images: Tensor) -> Tensor:
        """The same for images (N, 3, H, W) of one size, differentiable."""
        height, width = images.shape[-2:]
        padding = (0, self._padded(width) - width, 0, self._padded(height) - height)
        return F.pad(self._normalize(images), padding)

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.pixel_mean) / self.pixel_std

    def _padded(self, extent: int) -> int:
        return -(-extent // self.size_divisibility) * self.size_divisibility
