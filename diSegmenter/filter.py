"""Which instances are kept: the threshold of the CLIP score, and what the mask must be like."""

from __future__ import annotations

from dataclasses import dataclass

from exchange.pool_index import PoolInstance


@dataclass(frozen=True)
class InstanceFilter:
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
