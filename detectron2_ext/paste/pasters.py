"""Where pasted objects come from (INPUT.USE_COPY_METHOD): the pool, or other training images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detectron2_ext.data.mapper import PasteInfo, Paster
from detectron2_ext.data.view import PASTED, ObjectMask, Scene, SceneObject, SceneReader
from detectron2_ext.paste.composite import (
    RELEASED,
    Blend,
    CutoutAugmentation,
    Occlusion,
    draw_object_size,
    draw_position,
    overlay,
    put_on_top,
    resize_cutout,
)
from detectron2_ext.paste.plan import PastePlan
from detectron2_ext.paste.pool import InstancePool
from exchange.images import BadImage


class PoolPaster:
    """Pastes instances of a pool.

    Args:
        pool: what there is to paste.
        plan: which instances an image gets, how large and where.
        augmentations: change a resized cut-out, one after the other.
        blends: one of them is drawn per instance.
        occlude: what it leaves of the objects below.
    """

    def __init__(
        self,
        pool: InstancePool,
        plan: PastePlan,
        augmentations: Sequence[CutoutAugmentation],
        blends: Sequence[Blend],
        occlude: Occlusion = RELEASED,
    ) -> None:
        self._pool, self._plan, self._occlude = pool, plan, occlude
        self._augmentations, self._blends = list(augmentations), list(blends)

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator, skipped: list[str]) -> list[PasteInfo]:
        pasted = []
        for index, area_root, corner in self._plan(scene, k, rng):
            try:
                cutout = self._pool.load(index)
            except BadImage as error:
                skipped.append(str(error))
                continue
            size = draw_object_size(cutout.shape[:2], area_root, scene.size, rng)
            if size is None:
                continue
            cutout = resize_cutout(cutout, size)
            for augment in self._augmentations:
                cutout = augment(cutout, rng)
            x, y = draw_position(scene.size, cutout.shape[:2], rng) if corner is None else corner
            blend = self._blends[rng.integers(len(self._blends))]
            class_index = int(self._pool.categories[index])
            if overlay(scene, cutout, x, y, class_index, blend, self._occlude):
                box = (x, y, x + cutout.shape[1], y + cutout.shape[0])
                pasted.append(PasteInfo(class_index, box, index, int(self._pool.rounds[index])))
        return pasted


class ImagePaster:
    """``self_copy``: objects of a second training image, at the places that they have there.

    Simple Copy-Paste (Ghiasi et al., 2021), as X-Paste does it: the second image gets a view of its own, a
    random number of its objects, from none to all, is copied, and a scene that is smaller than that view
    grows to the right and downwards, in black.

    Args:
        reader: gives a random view of an image with its objects.
        images: data set indices to choose from, all alike.
        blends: one of them is drawn per image.
        occlude: what it leaves of the objects below.
    """

    def __init__(
        self,
        reader: SceneReader,
        images: np.ndarray,
        blends: Sequence[Blend],
        occlude: Occlusion = RELEASED,
    ) -> None:
        self._reader, self._images, self._blends, self._occlude = reader, images, list(blends), occlude

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator, skipped: list[str]) -> list[PasteInfo]:
        index = int(rng.choice(self._images))
        try:
            other = self._reader(index, rng)
        except BadImage as error:
            skipped.append(str(error))
            return []
        count = rng.integers(len(other.objects) + 1)
        chosen = [other.objects[i] for i in rng.permutation(len(other.objects))[:count]]
        if not chosen:
            return []
        blend = self._blends[rng.integers(len(self._blends))]
        scene.grow(other.size)
        cover = _union(chosen)
        x1, y1, x2, y2 = cover.box
        cutout = np.dstack([other.image[y1:y2, x1:x2], cover.crop * np.uint8(255)])
        blend(scene.image[y1:y2, x1:x2], cutout, cover.crop)
        for scene_object in chosen:
            scene_object.source = PASTED
        put_on_top(scene, chosen, cover, self._occlude)
        return [PasteInfo(scene_object.class_index, scene_object.mask.box) for scene_object in chosen]


class EitherPaster:
    """``p:0.5``: with that probability the first pasters, otherwise the second ones."""

    def __init__(self, probability: float, first: Sequence[Paster], second: Sequence[Paster]) -> None:
        self._probability, self._choices = probability, (list(first), list(second))

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator, skipped: list[str]) -> list[PasteInfo]:
        chosen = self._choices[rng.random() >= self._probability]
        return [info for paster in chosen for info in paster(scene, k, rng, skipped)]


def _union(objects: Sequence[SceneObject]) -> ObjectMask:
    boxes = np.array([scene_object.mask.box for scene_object in objects])
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    crop = np.zeros((bottom - top, right - left), np.uint8)
    for scene_object in objects:
        x1, y1, x2, y2 = scene_object.mask.box
        crop[y1 - top : y2 - top, x1 - left : x2 - left] |= scene_object.mask.crop
    return ObjectMask(crop, (left, top, right, bottom))
