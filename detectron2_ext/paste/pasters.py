"""Where pasted objects come from (INPUT.USE_COPY_METHOD): the pool, or other training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from detectron2_ext.data.mapper import PasteInfo, Paster
from detectron2_ext.data.view import PASTED, FitFlip, Scene, SceneReader, union
from detectron2_ext.paste.composite import (
    RELEASED,
    Blend,
    CutoutAugmentation,
    Occlusion,
    overlay,
    put_on_top,
    resize_cutout,
)
from detectron2_ext.paste.plan import PastePlan, draw_object_size, draw_position
from detectron2_ext.paste.pool import InstancePool
from detectron2_ext.paste.sources import ObjectRule, SourceRule, some_objects
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
                size = draw_object_size(self._pool.size(index), area_root, scene.size, rng)
                if size is None:
                    continue
                cutout = resize_cutout(self._pool.load(index, size), size)
            except BadImage as error:
                skipped.append(str(error))
                continue
            for augment in self._augmentations:
                cutout = augment(cutout, rng)
            x, y = draw_position(scene.size, cutout.shape[:2], rng) if corner is None else corner
            blend = self._blends[rng.integers(len(self._blends))]
            class_index = int(self._pool.categories[index])
            if overlay(scene, cutout, x, y, class_index, blend, self._occlude):
                box = (x, y, x + cutout.shape[1], y + cutout.shape[0])
                pasted.append(PasteInfo(class_index, box, index))
        return pasted


class ImagePaster:
    """``self_copy``: objects of a second training image, at the places that they have there.

    Simple Copy-Paste (Ghiasi et al., 2021), as X-Paste does it: the second image gets a view of its own, and a
    scene that is smaller than that view grows to the right and downwards, in black.

    Args:
        reader: gives a random view of an image with its objects.
        choose_source: chooses the second image.
        blends: one of them is drawn per image.
        occlude: what it leaves of the objects below.
        choose_objects: which of the second image's objects are copied.
        view_for: from the scene's (height, width) to how the second image is seen; None: as the reader sees it.
    """

    def __init__(
        self,
        reader: SceneReader,
        choose_source: SourceRule,
        blends: Sequence[Blend],
        occlude: Occlusion = RELEASED,
        *,
        choose_objects: ObjectRule = some_objects,
        view_for: Callable[[tuple[int, int]], FitFlip] | None = None,
    ) -> None:
        self._reader, self._choose_source, self._choose_objects = reader, choose_source, choose_objects
        self._blends, self._occlude, self._view_for = list(blends), occlude, view_for

    def __call__(self, scene: Scene, k: int, rng: np.random.Generator, skipped: list[str]) -> list[PasteInfo]:
        source = self._choose_source(scene, rng)
        if source is None:
            return []
        try:
            other = self._reader(source.index, rng, self._view_for and self._view_for(scene.size))
        except BadImage as error:
            skipped.append(str(error))
            return []
        chosen = self._choose_objects(source.objects(other), rng)
        if not chosen:
            return []
        blend = self._blends[rng.integers(len(self._blends))]
        scene.grow(other.size)
        cover = union([scene_object.mask for scene_object in chosen])
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
