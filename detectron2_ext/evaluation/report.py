"""Scores as a person and as a program reads them."""

from __future__ import annotations

from typing import Any

from detectron2_ext.evaluation.scoring import Evaluation
from exchange.annotations import AnnotationFile


def format_table(evaluation: Evaluation) -> str:
    """Box and mask scores in percent, a row each, with a dash where there is nothing to average."""
    names = list(evaluation.box)
    rows = [["", *names]]
    for title, summary in (("box", evaluation.box), ("mask", evaluation.mask)):
        rows.append([title, *("-" if summary[name] is None else f"{summary[name]:.2f}" for name in names)])
    return "\n".join(" ".join([f"{row[0]:<4}", *(f"{cell:>6}" for cell in row[1:])]) for row in rows)


def as_json(evaluation: Evaluation, annotations: AnnotationFile, **context: Any) -> dict[str, Any]:
    """All scores, per class too, with ``context`` (such as the checkpoint) in front."""
    per_class = [
        {"id": category["id"], "name": category["name"], "box_ap": box_ap, "mask_ap": mask_ap}
        for category, box_ap, mask_ap in zip(
            annotations.categories, evaluation.box_ap, evaluation.mask_ap, strict=True
        )
    ]
    return {**context, "box": evaluation.box, "mask": evaluation.mask, "classes": per_class}
