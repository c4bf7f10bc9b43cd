"""Cleaning of alpha masks, and the reasons to drop an instance, the CLIP threshold among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from exchange.pool_index import PoolInstance

# A part counts as an object of its own, not as a speck, from this share of the largest part on.
_OBJECT_SHARE = 0.1


@dataclass(frozen=True)
class MaskCleaner:
    """Makes "alpha > 0" mean the object.

    Eight bits truncate a sigmoid below 1/255 to 0; what lies above it, down to haze that nobody sees, counts for box
    and area, and pasting without blending makes it opaque. MRCA's release leaves it at that (floor 0, every
    part); X-Paste cuts at 128 and keeps the largest part when it loads an instance for pasting. Done here
    instead, mask, box, area, CLIP score and pasted pixels are of the same mask in every stage.

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
    clip_tolerance: float = 0.0

    def judge(self, instances: Iterable[PoolInstance]) -> list[PoolInstance]:
        """The instances of a round, each with the reason why it is dropped; empty if it is kept.

        With a ``clip_tolerance`` above 0 the threshold of a class is at most that far below the best score of those
        that nothing else drops (X-Paste), so that none loses all of its instances to it.
        """
        judged = [dataclasses.replace(instance, reason=self.reason(instance)) for instance in instances]
        if not self.clip_tolerance:
            return judged
        best: dict[int, float] = {}
        for instance in judged:
            if instance.reason in ("", "CLIP score") and instance.clip_score is not None:
                category = instance.category_id
                best[category] = max(instance.clip_score, best.get(category, instance.clip_score))
        return [
            dataclasses.replace(instance, reason="")
            if instance.reason == "CLIP score"
            and instance.clip_score >= best[instance.category_id] - self.clip_tolerance
            else instance
            for instance in judged
        ]

    def reason(self, instance: PoolInstance) -> str:
        """Why the instance is dropped, with the CLIP threshold as it is; empty if it is kept."""
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
