"""The choice of the benchmark whose rules a data set is scored by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from fvcore.common.config import CfgNode

from detectron2_ext.evaluation.pascal import OPEN_IMAGES, VOC, PascalTruth
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import Evaluation, GroundTruth
from exchange import files
from exchange.annotations import AnnotationFile
from exchange.config import from_repository
from exchange.errors import UserError

_KINDS = ("auto", "voc", "openimages")


class Truth(Protocol):
    """The annotations of a data set, arranged for scoring by a benchmark's rules.

    ``kind``: format of the result file, ``lvis`` or ``coco``. ``images``: the image records by id.
    """

    kind: str
    category_ids: npt.NDArray[np.int64]
    images: dict[int, dict[str, Any]]

    def counted(self, predictions: Predictions) -> npt.NDArray[np.bool_]: ...

    def score(self, predictions: Predictions) -> Evaluation: ...


def build_truth(cfg: CfgNode, annotations: AnnotationFile) -> Truth:
    """The truth of a data set for the benchmark that ``cfg.TEST.EVALUATOR`` names."""
    kind = cfg.TEST.EVALUATOR
    if kind == "auto":
        return GroundTruth(annotations)
    if kind == "voc":
        return PascalTruth(annotations, VOC)
    if kind == "openimages":
        return PascalTruth(annotations, OPEN_IMAGES, read_ancestors(cfg.TEST.HIERARCHY, annotations))
    raise UserError(f"TEST.EVALUATOR is {kind!r}: choose one of {', '.join(_KINDS)}")


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
