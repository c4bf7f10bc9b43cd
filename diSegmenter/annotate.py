"""From alpha masks to annotations in LVIS/COCO format: cleaning and outlines."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

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


def outline(alpha: np.ndarray) -> dict[str, Any]:
    """Annotation of the pixels with alpha > 0 of a uint8 (H, W) mask.

    Returns:
        ``bbox`` XYWH (tight), ``area`` (pixels) and ``segmentation``: the outer contours as polygons through
        the centres of the border pixels. Parts too thin for a polygon have none.
    """
    mask = (alpha > 0).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return {
        "bbox": [int(value) for value in cv2.boundingRect(mask)],
        "area": int(mask.sum()),
        "segmentation": [contour.ravel().tolist() for contour in contours if len(contour) >= 3],
    }
