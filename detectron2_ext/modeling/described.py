"""Weight files that say what they are of: checkpoints of a run, and what ``mrca export`` makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
from fvcore.common.config import CfgNode
from torch import Tensor

from detectron2_ext.modeling.extra_classes import without_extra_classes
from detectron2_ext.modeling.weights import read_weight_file
from exchange import files
from exchange.config import config_of_text
from exchange.errors import UserError
from exchange.typed import from_record


@dataclass(frozen=True)
class Category:
    """A category as the annotation file has it."""

    id: int
    name: str


@dataclass(frozen=True)
class DescribedWeights:
    """Weights with the settings and the categories (sorted by id, one for each class) that they were trained for.

    ``content``: what :func:`~detectron2_ext.modeling.weights.read_weight_file` returns.
    """

    path: str
    content: dict[str, Any]
    cfg: CfgNode
    categories: list[Category]


def read_described(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> DescribedWeights:
    """Reads a checkpoint of a run, or an exported one; ``overrides``: keys and values in turn, over its settings.

    Raises UserError where the file is missing, damaged, or does not say what it is of.
    """
    path = os.fspath(path)
    content = read_weight_file(path)
    settings, records = content.get("settings"), content.get("categories")
    if (
        not isinstance(settings, str)
        or not isinstance(records, list)
        or not records
        or not isinstance(content.get("model"), dict)
    ):
        raise UserError(
            f"{path} does not say its settings and the names of its categories: take a checkpoint of a run "
            "(train/model_….pth), made by this version, or what mrca export makes of one"
        )
    # The image counts of that file, which may be elsewhere by now, are among the weights.
    cfg = config_of_text(settings, path, [*overrides, "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", "''"])
    try:
        categories = [from_record(Category, record) for record in records]
    except ValueError as error:
        raise UserError(f"{path} is damaged: of a category {error}; take another checkpoint") from error
    if len(categories) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"{path} has names of {len(categories)} categories, but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: take another checkpoint"
        )
    return DescribedWeights(path, content, cfg, categories)


def last_checkpoint(run: str | os.PathLike[str]) -> str:
    """The newest checkpoint in a run folder; raises UserError if there is none."""
    folder = files.join(os.fspath(run), "train")
    path = marked_checkpoint(folder)
    if path is None:
        raise UserError(
            f"{run} holds no checkpoint, there is no {marker_in(folder)}: give a run folder that was trained in"
        )
    return path


def marked_checkpoint(folder: str) -> str | None:
    """The checkpoint that the marker in ``folder`` names, whether or not it is there; None without a marker."""
    marker = marker_in(folder)
    if not files.exists(marker):
        return None
    return files.join(folder, files.read_bytes(marker).decode(errors="replace").strip())


def marker_in(folder: str) -> str:
    """The file that names the checkpoint in ``folder`` to go on from."""
    return files.join(folder, "last_checkpoint")


def without_extra_categories(
    weights: Mapping[str, Tensor], cfg: CfgNode, categories: Sequence[Category]
) -> tuple[dict[str, Tensor], CfgNode, Sequence[Category]]:
    """Weights, settings and categories of a network without DATASETS.EXTRA_CATEGORIES, which detects the same."""
    num_extra = cfg.MODEL.ROI_HEADS.NUM_EXTRA_CLASSES
    cut = cfg.clone()
    cut.defrost()
    cut.MODEL.ROI_HEADS.NUM_CLASSES -= num_extra
    cut.MODEL.ROI_HEADS.NUM_EXTRA_CLASSES = 0
    cut.DATASETS.EXTRA_CATEGORIES = ""
    cut.freeze()
    return without_extra_classes(weights, num_extra), cut, categories[: len(categories) - num_extra]


def write_described(
    path: str, weights: Mapping[str, Tensor], cfg: CfgNode, categories: Sequence[Category]
) -> None:
    """Writes weights as safetensors, with settings and categories as metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    records = json.dumps([asdict(category) for category in categories])
    metadata = {"format": "pt", "settings": cfg.dump(), "categories": records}
    files.write_bytes(path, safetensors.torch.save(tensors, metadata))
