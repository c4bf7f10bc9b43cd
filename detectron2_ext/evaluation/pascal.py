"""Average precision by the rules of Pascal VOC and of Open Images.

In both a prediction goes to the annotated object that it overlaps most, and to no other; average precision is the
area under the curve of precision over recall, made monotone (Everingham et al., The Pascal Visual Object Classes
Challenge: A Retrospective, 2015, sections 2.2 and 4.1; Hariharan et al., Simultaneous Detection and Segmentation,
2014, section 5 for masks; Kuznetsova et al., The Open Images Dataset V4, 2020, section 5.3 for groups).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as mask_api

from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import Summary, Truth, percent
from exchange import files
from exchange.annotations import AnnotationFile
from exchange.config import from_repository
from exchange.errors import UserError
from exchange.segmentations import enclosing

Ancestors = Mapping[int, Collection[int]]
_Floats = npt.NDArray[np.float64]
_CORRECT, _WRONG, _IGNORED = 1, 0, -1


@dataclass(frozen=True)
class PascalRules:
    """What the two benchmarks do differently.

    ``thresholds``: overlaps from which an object counts as found; AP is the mean over them. ``named``: which of them
    have a score of their own, as ``AP50``. ``verified_only``: a category counts only in the images that are known to
    contain it or known not to.
    """

    thresholds: tuple[float, ...]
    named: tuple[float, ...]
    verified_only: bool


# AP over 0.1 to 0.9 is AP^r_vol of Hariharan et al.
VOC = PascalRules(tuple(i / 10 for i in range(1, 10)), named=(0.5, 0.7), verified_only=False)
OPEN_IMAGES = PascalRules((0.5,), named=(0.5,), verified_only=True)


class PascalTruth(Truth):
    """Scores by ``rules``.

    An annotation with ``difficult`` counts neither for nor against anybody. One with ``iscrowd`` stands for a group:
    one object, found by the best prediction that lies in it by half or more; the others there are ignored. With
    ``ancestors`` (category ids above each category id) an object is one of each of them, too; a category known to be
    present brings them along, one known to be absent the categories below it. What a network predicts is not
    expanded: it is to predict the upper categories as well.
    """

    def __init__(
        self, annotations: AnnotationFile, rules: PascalRules, ancestors: Ancestors | None = None
    ) -> None:
        super().__init__(annotations)
        self._rules = rules
        above = {c: {c, *(ancestors or {}).get(c, ())} for c in self.category_ids.tolist()}
        below: dict[int, set[int]] = defaultdict(set)
        for category_id, upper in above.items():
            for one in upper:
                below[one].add(category_id)
        # places among the annotations, by category id and image id
        self._objects: dict[int, dict[int, list[int]]] = {
            category_id: defaultdict(list) for category_id in above
        }
        judged: set[tuple[int, int]] = set()
        owners = zip(
            annotations.image_ids[annotations.object_images].tolist(),
            self.category_ids[annotations.object_classes].tolist(),
            strict=True,
        )
        for place, (image_id, own) in enumerate(owners):
            for category_id in above[own]:
                self._objects[category_id][image_id].append(place)
                judged.add((image_id, category_id))
        for names, expanded in (("pos_category_ids", above), ("neg_category_ids", below)):
            images, labels = annotations.id_pairs(names)
            for image_id, category_id in zip(images.tolist(), labels.tolist(), strict=True):
                judged.update((image_id, one) for one in expanded.get(category_id, ()))
        if rules.verified_only:
            self.judge_only(*np.array(list(judged), dtype=np.int64).reshape(-1, 2).T)

    def in_order(self, predictions: Predictions) -> Predictions:
        order = np.lexsort((-predictions.scores, predictions.class_indices))  # stable
        return predictions.select(order)

    def summarize(self, precision: _Floats) -> tuple[Summary, list[float | None]]:
        places = {f"AP{round(100 * t)}": self._rules.thresholds.index(t) for t in self._rules.named}
        scores = {"AP": percent(precision)}
        scores |= {name: percent(precision[:, place]) for name, place in places.items()}
        return scores, [percent(of_class) for of_class in precision]

    def precision(self, class_index: int, predictions: Predictions, iou_type: str) -> _Floats:
        """Average precision of one class (thresholds,), NaN without objects."""
        objects = self._objects[int(self.category_ids[class_index])]
        thresholds = self._rules.thresholds
        truth = self.annotations
        wanted = sum(int((~truth.difficult[of_image]).sum()) for of_image in objects.values())
        if not wanted:
            return np.full(len(thresholds), np.nan)
        verdicts = np.full((len(thresholds), len(predictions)), _WRONG)
        for image_id in np.unique(predictions.image_ids).tolist():
            places = np.flatnonzero(predictions.image_ids == image_id)
            annotated = objects.get(image_id, [])
            if annotated:
                overlaps = self._overlaps(predictions.select(places), annotated, iou_type)
                for row, threshold in enumerate(thresholds):
                    verdicts[row, places] = judge_image(
                        overlaps, truth.crowd[annotated], truth.difficult[annotated], threshold
                    )
        return np.array([average_precision(of_threshold, wanted) for of_threshold in verdicts])

    def _overlaps(self, found: Predictions, annotated: Sequence[int], iou_type: str) -> _Floats:
        """Intersection over union (predictions, objects); over the prediction's own area where it is a group."""
        truth = self.annotations
        groups = truth.crowd[annotated].astype(int).tolist()
        if iou_type == "bbox":
            return np.asarray(mask_api.iou(found.boxes, truth.boxes[annotated], groups))
        height, width = truth.image_sizes[truth.object_images[annotated[0]]].tolist()
        masks = [_encoded(truth.segmentation(place), height, width) for place in annotated]
        return np.asarray(mask_api.iou(found.masks(), masks, groups))


def judge_image(
    overlaps: _Floats, is_group: npt.NDArray[np.bool_], difficult: npt.NDArray[np.bool_], threshold: float
) -> npt.NDArray[np.int64]:
    """What becomes of the predictions of one class in one image: 1 correct, 0 wrong, -1 ignored.

    ``overlaps``: (predictions, objects), best prediction first. ``is_group``, ``difficult``: of the objects.
    """
    verdicts = np.full(len(overlaps), _WRONG)
    # Single objects first: each takes the best of the predictions that overlap it most.
    chosen, reached = _reached(overlaps, ~is_group, threshold)
    _hand_out(verdicts, chosen, reached, otherwise=_WRONG)
    verdicts[reached & difficult[chosen]] = _IGNORED
    chosen, reached = _reached(overlaps, is_group, threshold)
    _hand_out(verdicts, chosen, reached & (verdicts == _WRONG), otherwise=_IGNORED)
    return verdicts


def average_precision(verdicts: npt.NDArray[np.int64], wanted: int) -> float:
    """Area under precision over recall, precision made to fall (never to rise) with recall.

    ``verdicts``: of :func:`judge_image`, best prediction of the data set first. ``wanted``: number of objects.
    """
    verdicts = verdicts[verdicts != _IGNORED]
    correct = np.cumsum(verdicts == _CORRECT)
    precision = correct / np.arange(1, len(verdicts) + 1)
    best_from_here_on = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here_on[verdicts == _CORRECT].sum() / wanted)


def _reached(
    overlaps: _Floats, allowed: npt.NDArray[np.bool_], threshold: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The allowed object that each prediction overlaps most, and whether by ``threshold`` or more."""
    chosen = np.where(allowed, overlaps, -1.0).argmax(axis=1)
    return chosen, allowed[chosen] & (overlaps[np.arange(len(overlaps)), chosen] >= threshold)


def _hand_out(
    verdicts: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.bool_],
    otherwise: int,
) -> None:
    """The first candidate for each object is correct, the later ones get ``otherwise``; in place."""
    places = np.flatnonzero(candidates)
    verdicts[places] = otherwise
    verdicts[places[np.unique(chosen[places], return_index=True)[1]]] = _CORRECT


def _encoded(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons or run lengths of a JSON file as compressed run lengths."""
    if isinstance(segmentation, list):
        polygons = enclosing(segmentation)
        if polygons:
            merged: dict[str, Any] = mask_api.merge(mask_api.frPyObjects(polygons, height, width))
            return merged
        segmentation = {"size": [height, width], "counts": [height * width]}
    if isinstance(segmentation["counts"], list):
        compressed: dict[str, Any] = mask_api.frPyObjects(segmentation, height, width)
        return compressed
    return dict(segmentation)


def read_ancestors(path: str, annotations: AnnotationFile) -> dict[int, set[int]]:
    """The category ids above each category id in Open Images' hierarchy file; none without a ``path``.

    The file is a tree of ``LabelName`` and ``Subcategory``; categories are known there by their ``freebase_id``.
    """
    above: dict[int, set[int]] = {}
    if not path:
        return above
    ids = {category.get("freebase_id"): category["id"] for category in annotations.categories}

    def visit(node: dict[str, Any], upper: set[int]) -> Iterator[tuple[int, set[int]]]:
        known = ids.get(node["LabelName"])
        if known is not None:
            yield known, upper
            upper = upper | {known}
        for child in node.get("Subcategory", ()):
            yield from visit(child, upper)

    try:
        for category_id, upper in visit(files.read_json(from_repository(path)), set()):
            above.setdefault(category_id, set()).update(upper)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} (TEST.HIERARCHY) is no tree of LabelName and Subcategory as Open Images publishes it"
        ) from error
    if not above:
        raise UserError(
            f"{path} (TEST.HIERARCHY) has none of the categories of {annotations.path}: their 'freebase_id' must be "
            "the LabelName there"
        )
    return above
