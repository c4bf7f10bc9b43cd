"""Masks of annotated objects as a view shows them, drawn only where the object is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from detectron2_ext.data.dataset import Polygon, RunLengths, Segmentation
from detectron2_ext.data.geometry import View


@dataclass
class ObjectMask:
    """A mask cut to its tight box.

    ``crop``: uint8 (h, w) of 0 and 1; ``box``: XYXY pixel edges in the image.
    """

    crop: np.ndarray
    box: tuple[int, int, int, int]


def tighten(mask: np.ndarray, x: int = 0, y: int = 0) -> ObjectMask | None:
    """Cut a mask, uint8 (h, w) with its top left pixel at (x, y), to its tight box; None if it is empty."""
    left, top, width, height = cv2.boundingRect(mask)
    if width == 0:
        return None
    right, bottom = left + width, top + height
    return ObjectMask(
        np.ascontiguousarray(mask[top:bottom, left:right]), (x + left, y + top, x + right, y + bottom)
    )


def rasterize(segmentation: Segmentation, view: View) -> ObjectMask | None:
    """The mask of an object in a view, equal to rasterising the view's whole canvas; None if nothing
    shows."""
    if isinstance(segmentation, RunLengths):
        return _view_run_lengths(segmentation, view)
    return _fill_polygons([view.coordinates(polygon) for polygon in segmentation], view.size)


def _fill_polygons(polygons: list[Polygon], size: tuple[int, int]) -> ObjectMask | None:
    """COCO's rule for the pixels of polygons, within the window around them."""
    points = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
    # the rule rounds to fifths of a pixel, so a margin of one pixel holds every pixel that it can set
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    left, top = max(0, math.floor(left) - 1), max(0, math.floor(top) - 1)
    width = min(size[1], math.ceil(right) + 1) - left
    height = min(size[0], math.ceil(bottom) + 1) - top
    if width <= 0 or height <= 0:
        return None
    runs = coco_mask.frPyObjects([(p - (left, top)).reshape(-1).tolist() for p in polygons], height, width)
    mask = coco_mask.decode(runs[0] if len(runs) == 1 else coco_mask.merge(runs))
    return tighten(np.ascontiguousarray(mask), left, top)


def _view_run_lengths(runs: RunLengths, view: View) -> ObjectMask | None:
    """A bit mask takes the nearest pixel, as Detectron2's ``apply_segmentation`` does."""
    mask = coco_mask.decode({"size": list(runs.size), "counts": runs.counts})
    rows, columns = view.source_pixels(runs.size)
    return tighten(mask[np.ix_(rows, columns)])
