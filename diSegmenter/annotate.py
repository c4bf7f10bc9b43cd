"""From alpha masks to annotations in LVIS/COCO format."""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from exchange.pool_index import PoolInstance


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


def lvis_file(pool: Iterable[PoolInstance], categories: list[dict[str, Any]], round_: int) -> dict[str, Any]:
    """The pool in LVIS format: one image and one annotation for each instance, numbered from 1."""
    images, annotations = [], []
    for number, instance in enumerate(pool, start=1):
        images.append(
            {
                "id": number,
                "file_name": instance.file,
                "width": instance.width,
                "height": instance.height,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        )
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": instance.category_id,
                "bbox": instance.bbox,
                "area": instance.area,
                "segmentation": instance.segmentation,
                "iscrowd": 0,
                "round": instance.round,
                "clip_score": instance.clip_score,
            }
        )
    return {
        "info": {"description": "generated instances to paste", "round": round_},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
