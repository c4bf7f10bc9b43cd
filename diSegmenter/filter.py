"""Which instances are kept: the thresholds of what was measured, and what the mask must be like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from exchange.pool_index import PoolInstance


@dataclass(frozen=True)
class InstanceFilter:
    """What an instance must satisfy to be kept; see SEGMENTER in exchange/defaults.yaml."""

    clip_threshold: float
    area_share: tuple[float, float]
    max_objects: int
    drop_touching_border: bool
    clip_tolerance: float = 0.0
    similarity_threshold: float = -1.0
    judge_threshold: float = 0.0

    def in_words(self) -> str:
        """What is kept, for a person to read."""
        low, high = self.area_share
        words = [f"a CLIP score of {self.clip_threshold:g} or more"]
        if self.clip_tolerance:
            words[0] += f" (or up to {self.clip_tolerance:g} below the best of the class)"
        bounds = [f"more than {100 * low:g} %"] * (low > 0) + [f"less than {100 * high:g} %"] * (high <= 1)
        if bounds:
            words.append(f"an object that covers {' and '.join(bounds)} of its image")
        if self.max_objects:
            words.append(f"at most {self.max_objects} objects in its mask")
        if self.similarity_threshold > -1:
            words.append(f"a similarity to real objects of {self.similarity_threshold:g} or more")
        if self.judge_threshold > 0:
            words.append(f"a judge's yes with a probability of {self.judge_threshold:g} or more")
        if self.drop_touching_border:
            words.append("an object that does not touch the border")
        return f"Kept is what has {', '.join(words)}."

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
        if instance.similarity is not None and instance.similarity < self.similarity_threshold:
            return "similarity"
        if instance.judge is not None and instance.judge < self.judge_threshold:
            return "judge"
        if instance.clip_score is not None and instance.clip_score < self.clip_threshold:
            return "CLIP score"
        return ""
