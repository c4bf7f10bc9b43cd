"""Large-scale jitter: where an image lands on the training canvas."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class View:
    """A resized, cropped and possibly mirrored sight of an image.

    The image is resized to ``scaled_size``, of which the window at ``offset`` of ``size`` remains; sizes are
    (height, width), the offset is (y, x). ``scale`` maps coordinates; the scaled size is rounded down, the
    coordinates are not (as in EfficientDet's and Detic's augmentation).
    """

    scale: float
    scaled_size: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    flip: bool = False

    def image(self, image: np.ndarray) -> np.ndarray:
        """Apply to an image uint8 (h, w, 3), which may have been decoded at a smaller size: uint8 (*size,
        3)."""
        if image.shape[:2] != self.scaled_size:
            image = cv2.resize(image, self.scaled_size[::-1], interpolation=cv2.INTER_LINEAR)
        (top, left), (height, width) = self.offset, self.size
        image = image[top : top + height, left : left + width]
        return cv2.flip(image, 1) if self.flip else np.ascontiguousarray(image)

    def coordinates(self, points: np.ndarray) -> np.ndarray:
        """Map pixel coordinates x, y (..., 2); they may leave the view: float64 (..., 2)."""
        moved = points * np.float64(self.scale) - np.array(self.offset[::-1], dtype=np.float64)
        if self.flip:
            moved[..., 0] = self.size[1] - moved[..., 0]
        return moved

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (N, 4) XYXY and cut them at the border of the view: float32 (N, 4)."""
        corners = self.coordinates(boxes.reshape(-1, 2, 2))
        corners = np.stack([corners.min(axis=1), corners.max(axis=1)], axis=1)
        return np.clip(corners, 0, self.size[::-1]).reshape(-1, 4).astype(np.float32)

    def source_pixels(self, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the image (height, width) whose nearest pixels the view shows: two int64
        arrays."""
        picked = []
        for extent, scaled, start, length in zip(
            image_size, self.scaled_size, self.offset, self.size, strict=True
        ):
            steps = np.full(scaled, extent / scaled)
            steps[0] /= 2
            centers = np.cumsum(steps)  # added up one by one, as Pillow does, whose ties then fall alike
            picked.append(centers[start : start + length].astype(np.int64))
        rows, columns = picked
        return rows, columns[::-1] if self.flip else columns


@dataclass(frozen=True)
class ResizeCropFlip:
    """EfficientDet's augmentation (Tan et al., 2020, section 5.1; Detic's ``EfficientDetResizeCrop``).

    The image is scaled to fit a square of ``target_size`` times a factor drawn from ``scale_range``, cropped
    at a random place to at most ``target_size``, and mirrored with probability ``flip_probability``.
    """

    target_size: int
    scale_range: tuple[float, float]
    flip_probability: float = 0.5

    def draw(self, image_size: tuple[int, int], rng: np.random.Generator) -> View:
        """A random view of an image of ``image_size`` (height, width)."""
        height, width = image_size
        scale = rng.uniform(*self.scale_range) * self.target_size / max(height, width)
        scaled = max(1, int(height * scale)), max(1, int(width * scale))
        # both offsets are drawn always, so that the flip does not depend on the image's shape
        offset = [int(max(0, extent - self.target_size) * rng.random()) for extent in scaled]
        size = [min(extent, self.target_size) for extent in scaled]
        flip = rng.random() < self.flip_probability
        return View(scale, scaled, (offset[0], offset[1]), (size[0], size[1]), flip)
