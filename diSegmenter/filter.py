"""Cleaning of alpha masks, and the reasons to drop an instance, the CLIP threshold among them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from exchange.pool_index import PoolInstance

# A part counts as an object of its own, not as a speck, from this share of the largest part on.
_OBJECT_SHARE = 0.1


@dataclass(frozen=True)
class MaskCleaner:
    """Makes "alpha > 0" mean the object.

    The sigmoid of a network is nowhere exactly 0, so box and area of "alpha > 0" would cover haze that nobody
    sees, and pasting without blending would make it opaque. X-Paste and the reference therefore cut at 128
    and keep the largest part when they load an instance for pasting; done here instead, mask, box, area and
    pasted pixels are the same in every stage.

    Args:
        floor: alpha up to this becomes 0.
        largest_component: keep only the largest 8-connected part of what is left.
    """

    floor: int
    largest_component: bool

    def __call__(self, alpha: np.ndarray) -> tuple[np.ndarray, int]:
        """The cleaned uint8 (H, W) mask, and the number of separate objects that were in it."""
        above = (alpha > self.floor).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        if len(areas) == 0:
            return np.zeros_like(alpha), 0
        objects = int((areas >= _OBJECT_SHARE * areas.max()).sum())
        keep = labels == 1 + int(areas.argmax()) if self.largest_component else above.astype(bool)
        return np.where(keep, alpha, 0).astype(np.uint8), objects


@dataclass(frozen=True)
class Checks:
    """What an instance must satisfy to be kept; see SEGMENTER in exchange/defaults.yaml."""

    clip_threshold: float
    area_share: tuple[float, float]
    max_objects: int
    drop_touching_border: bool

    def reason(self, instance: PoolInstance) -> str:
        """Why the instance is dropped; empty if it is kept."""
        x, y, width, height = instance.bbox
        smallest, largest = self.area_share
        share = instance.area / (instance.width * instance.height)
        touches = x == 0 or y == 0 or x + width == instance.width or y + height == instance.height
        if not instance.segmentation:
            return "no object"
        if share <= smallest:
            return "too small"
        if share >= largest:
            return "too large"
        if self.max_objects and instance.objects > self.max_objects:
            return "several objects"
        if self.drop_touching_border and touches:
            return "touches the border"
        if instance.clip_score is not None and instance.clip_score < self.clip_threshold:
            return "CLIP score"
        return ""
