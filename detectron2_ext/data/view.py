"""One training image while it is put together: where it lands on the canvas, its pixels and its objects' masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import torch

from detectron2_ext.data.dataset import DetectionDataset, Polygon, RunLengths, Segmentation
from detectron2_ext.data.images import read_image
from detectron2_ext.structures import BitMasks, Instances


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


@dataclass(frozen=True)
class FitFlip:
    """Scaled to fit ``target_size`` (height, width) times a factor drawn from ``scale_range``, whole, perhaps mirrored.

    X-Paste's view of an image that is copied from (INPUT.LIMIT_SRC_LSJ).
    """

    target_size: tuple[int, int]
    scale_range: tuple[float, float] = (0.8, 1.2)
    flip_probability: float = 0.5

    def draw(self, image_size: tuple[int, int], rng: np.random.Generator) -> View:
        """A random view of an image of ``image_size`` (height, width)."""
        fit = min(target / extent for target, extent in zip(self.target_size, image_size, strict=True))
        scale = rng.uniform(*self.scale_range) * fit
        scaled = max(1, int(image_size[0] * scale)), max(1, int(image_size[1] * scale))
        return View(scale, scaled, (0, 0), scaled, rng.random() < self.flip_probability)


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


def union(masks: Sequence[ObjectMask]) -> ObjectMask:
    """The pixels of any of one or more masks of an image."""
    boxes = np.array([mask.box for mask in masks])
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    crop = np.zeros((bottom - top, right - left), np.uint8)
    for mask in masks:
        x1, y1, x2, y2 = mask.box
        crop[y1 - top : y2 - top, x1 - left : x2 - left] |= mask.crop
    return ObjectMask(crop, (left, top, right, bottom))


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


REAL, PASTED = 0, 1


@dataclass
class SceneObject:
    """An object: XYXY ``box`` in pixels, its visible part as ``mask``, its class index and its source."""

    box: tuple[float, float, float, float]
    mask: ObjectMask
    class_index: int
    source: int = REAL


@dataclass
class Scene:
    """``image``: uint8 RGB (H, W, 3), written in place; ``objects``: from back to front."""

    image: np.ndarray
    objects: list[SceneObject]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    def grow(self, size: tuple[int, int]) -> None:
        """Extend the image to the right and downwards, in black, to at least ``size`` (height, width)."""
        below, beside = (max(0, new - old) for new, old in zip(size, self.size, strict=True))
        if below or beside:
            self.image = np.pad(self.image, ((0, below), (0, beside), (0, 0)))

    def instances(self) -> Instances:
        """The objects as ``gt_boxes``, ``gt_classes``, ``gt_masks`` and ``instance_source``."""
        objects = self.objects
        crops = [torch.from_numpy(o.mask.crop) for o in objects]
        return Instances(
            self.size,
            gt_boxes=torch.tensor([o.box for o in objects], dtype=torch.float32).reshape(-1, 4),
            gt_classes=torch.tensor([o.class_index for o in objects], dtype=torch.int64),
            gt_masks=BitMasks.from_crops(crops, [o.mask.box for o in objects], self.size),
            instance_source=torch.tensor([o.source for o in objects], dtype=torch.int64),
        )


class SceneReader:
    """Reads images of ``dataset`` in the views that ``augmentation`` draws; ``changes`` are made to each scene."""

    def __init__(
        self,
        dataset: DetectionDataset,
        augmentation: ResizeCropFlip | FitFlip,
        changes: Sequence[Callable[[Scene, np.random.Generator], None]] = (),
    ) -> None:
        self.dataset = dataset
        self._augmentation, self._changes = augmentation, list(changes)

    def __call__(self, index: int, rng: np.random.Generator, augmentation: FitFlip | None = None) -> Scene:
        """A view of one image with its objects, without crowds and what the view does not show.

        ``augmentation``: draws the view in place of the reader's own. Raises BadImage where the image cannot be read.
        """
        record = self.dataset.record(index)
        view = (augmentation or self._augmentation).draw((record.height, record.width), rng)
        image = read_image(record.file_name, (record.height, record.width), view.scale)
        boxes = view.boxes(record.boxes)
        visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & ~record.crowd
        objects = []
        for offset in np.flatnonzero(visible).tolist():
            mask = rasterize(self.dataset.segmentation(record.first_object + offset), view)
            if mask is not None:
                box = tuple(boxes[offset].tolist())
                objects.append(SceneObject(box, mask, int(record.classes[offset])))
        scene = Scene(view.image(image), objects)
        for change in self._changes:
            change(scene, rng)
        return scene
