"""Which classes the annotated objects are taken for: what average precision does not tell."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as mask_api

from detectron2_ext.evaluation.predictions import Predictions
from exchange.annotations import AnnotationFile

_Ints = npt.NDArray[np.int64]
_OVERLAP = 0.5  # of boxes: those of masks would cost as much as scoring
TakenFor = Mapping[int | None, int]


class Confusions:
    """Counts, object by object, what the network took it for.

    An object is taken for the class of the most confident prediction whose box overlaps its own by an IoU of 0.5 or
    more, for none where there is no such prediction. A prediction that fits an object of its own class speaks for
    objects of that class alone: two objects at one place are not each other's confusion. Groups (``iscrowd``) and
    ``difficult`` objects are left out. All predictions count, also those that LVIS does not judge in an image. A few
    bytes an object are kept, and no table of classes times classes.
    """

    def __init__(self, annotations: AnnotationFile) -> None:
        self._annotations = annotations
        single = np.flatnonzero(~(annotations.crowd | annotations.difficult))
        self._order = single[np.argsort(annotations.object_images[single], kind="stable")]
        self._bounds = np.searchsorted(
            annotations.object_images[self._order], np.arange(len(annotations.image_ids) + 1)
        )
        self._by_id = np.argsort(annotations.image_ids)
        self._pairs: list[_Ints] = []

    def add(self, image_id: int, predictions: Predictions) -> None:
        """Counts the objects of one image, of which ``predictions`` are all, maybe none."""
        truth = self._annotations
        place = self._by_id[np.searchsorted(truth.image_ids, image_id, sorter=self._by_id)]
        objects = self._order[self._bounds[place] : self._bounds[place + 1]]
        classes = truth.object_classes[objects].astype(np.int64)
        taken = _taken_for(truth.boxes[objects], classes, predictions)
        self._pairs.append(classes * (len(truth.category_ids) + 1) + taken + 1)

    def add_all(self, predictions: Predictions) -> None:
        """Counts the objects of all images of the data set."""
        image_ids = self._annotations.image_ids[self._by_id]
        predictions = predictions.select(np.argsort(predictions.image_ids, kind="stable"))
        bounds = np.searchsorted(predictions.image_ids, [*image_ids.tolist(), np.iinfo(np.int64).max])
        for image_id, (first, last) in zip(image_ids.tolist(), pairwise(bounds.tolist()), strict=True):
            self.add(image_id, predictions.select(slice(first, last)))

    def to_bytes(self) -> bytes:
        """What was counted, for :meth:`add_bytes` of another process."""
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate([np.empty(0, np.int64), *self._pairs]), allow_pickle=False)
        return buffer.getvalue()

    def add_bytes(self, data: bytes) -> None:
        """Adds what another process counted."""
        self._pairs.append(np.load(io.BytesIO(data), allow_pickle=False))

    def by_class(self) -> Sequence[TakenFor]:
        """For each class the number of its objects that were taken for a class (None: for nothing), most first; by
        index both."""
        size = len(self._annotations.category_ids)
        pairs, counts = np.unique(np.concatenate([np.empty(0, np.int64), *self._pairs]), return_counts=True)
        found: list[dict[int | None, int]] = [{} for _ in range(size)]
        for place in np.argsort(-counts, kind="stable").tolist():
            class_index, taken = divmod(int(pairs[place]), size + 1)
            found[class_index][taken - 1 if taken else None] = int(counts[place])
        return found


def _taken_for(boxes: npt.NDArray[np.float64], classes: _Ints, predictions: Predictions) -> _Ints:
    """The class index that each object is taken for, -1 for none, (M,); ``boxes`` XYWH (M, 4), ``classes`` (M,)."""
    if not len(classes) or not len(predictions):
        return np.full(len(classes), -1)
    overlaps = np.asarray(mask_api.iou(predictions.boxes, boxes, [0] * len(boxes)))  # (predictions, objects)
    fits = overlaps >= _OVERLAP
    own = predictions.class_indices[:, None] == classes
    is_right = (fits & own).any(axis=1)
    speaks = fits & (own | ~is_right[:, None])
    best = np.where(speaks, predictions.scores[:, None], -1.0).argmax(axis=0)
    return np.where(speaks.any(axis=0), predictions.class_indices[best], -1)
