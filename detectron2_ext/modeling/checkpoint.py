"""Loads weights of this network's family: nothing missing, nothing left over, nothing silently dropped."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from detectron2_ext.modeling.weight_files import read_weight_file
from exchange.errors import UserError

_log = logging.getLogger(__name__)

_BACKBONE = "backbone.bottom_up."
_CLASSIFIER_PARTS = (".cls_score.weight", ".cls_score.bias", ".freq_weight")
_FIRST_CLASSIFIER = "roi_heads.box_predictor.0.cls_score.bias"
_NEVER_WEIGHTS = (
    "pixel_mean",
    "pixel_std",
)  # in files of early Detectron2 releases; the configuration says them


@dataclass
class LoadReport:
    """What became of every name: ``loaded`` from the file, ``converted`` (name in the file: name here),
    ``fresh`` (here, kept their initial values), ``unused`` (in the file, without a place here)."""

    path: str
    averaged: bool = False
    loaded: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def load_weights(
    model: nn.Module,
    path: str,
    *,
    use_ema: bool = False,
    new_classifier: bool = False,
    sha256: str | None = None,
) -> LoadReport:
    """Loads a checkpoint of the network or of its backbone into ``model``, in place.

    Args:
        path: ``.pth`` (``{"model": …, "model_ema": …}`` or names and tensors), ``.pkl`` (pre-trained
            backbones in Detectron2's format) or ``.safetensors``.
        use_ema: take ``model_ema`` where the file has it.
        new_classifier: a file of another number of classes is welcome; the classifiers keep their initial
            values.
        sha256: of the file, in hexadecimal; None does not check.

    Raises:
        UserError: the file is missing, damaged, another one than ``sha256`` or of another network; the model
            is then unchanged.
    """
    content = read_weight_file(path, sha256)
    average = content.get("model_ema")
    report = LoadReport(path, averaged=use_ema and isinstance(average, dict) and len(average) > 0)
    weights = _weights_of(content, report)
    expected = model.state_dict()
    if any(name.startswith(("roi_heads.", "proposal_generator.")) for name in weights):
        chosen = _match_network(weights, expected, report, new_classifier)
    else:
        chosen = _match_backbone(weights, expected, report)
    model.load_state_dict(chosen, strict=False)
    report.loaded = sorted(chosen)
    _tell(report)
    return report


def _weights_of(content: dict[str, Any], report: LoadReport) -> dict[str, Tensor]:
    keys = ("model_ema",) if report.averaged else ("model", "state_dict")
    content = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    named = {str(name).removeprefix("module."): value for name, value in content.items()}
    weights = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{report.path} has no weights: expected names and tensors, or those below 'model'")
    report.unused = [name for name in named if name not in weights or name in _NEVER_WEIGHTS]
    return {name: value for name, value in weights.items() if name not in _NEVER_WEIGHTS}


def _match_network(
    weights: dict[str, Tensor], expected: dict[str, Tensor], report: LoadReport, new_classifier: bool
) -> dict[str, Tensor]:
    differing = [
        name for name, value in weights.items() if name in expected and value.shape != expected[name].shape
    ]
    missing = [name for name in expected if name not in weights]
    surplus = [name for name in weights if name not in expected]
    only_classifier = all(name.endswith(_CLASSIFIER_PARTS) for name in differing)
    if differing and only_classifier and new_classifier and not missing and not surplus:
        report.fresh = differing
        return {name: value for name, value in weights.items() if name not in differing}
    if _FIRST_CLASSIFIER in differing and weights[_FIRST_CLASSIFIER].ndim == 1 and only_classifier:
        classes, ours = (len(source[_FIRST_CLASSIFIER]) - 1 for source in (weights, expected))
        raise UserError(
            f"{report.path} was trained on {classes} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {ours}: "
            f"set it to {classes} or take another file"
        )
    if differing or missing or surplus:
        raise UserError(_describe_difference(report.path, weights, expected, differing, missing, surplus))
    return weights


def _describe_difference(
    path: str,
    weights: dict[str, Tensor],
    expected: dict[str, Tensor],
    differing: list[str],
    missing: list[str],
    surplus: list[str],
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} parameters are missing (first {missing[0]})")
    if surplus:
        parts.append(f"{len(surplus)} have no place (first {surplus[0]})")
    if differing:
        name = differing[0]
        shapes = f"{tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        parts.append(f"{len(differing)} have another shape (first {name}: {shapes})")
    return f"{path} is of another network than the configuration: {'; '.join(parts)}"


def _match_backbone(
    weights: dict[str, Tensor], expected: dict[str, Tensor], report: LoadReport
) -> dict[str, Tensor]:
    """Finds the place of a pre-trained backbone's weights, whose names lack the path to it."""
    ours = {name for name in expected if name.startswith(_BACKBONE)}
    prefix = f"{_BACKBONE}base." if any(name.startswith(f"{_BACKBONE}base.") for name in ours) else _BACKBONE
    renamed = _official_swin_names(weights) if prefix + "layers.0.blocks.0.norm1.weight" in ours else {}
    places = {name: prefix + renamed.get(name, name).removeprefix(prefix) for name in weights}
    chosen, differing, surplus = {}, [], []
    for name, place in places.items():
        if place in ours and weights[name].shape == expected[place].shape:
            chosen[place] = weights[name]
        elif _is_image_classifier(name):
            report.unused.append(name)
        else:
            (differing if place in ours else surplus).append(name)
    report.converted = {name: places[name] for name in renamed}
    report.fresh = [name for name in expected if name not in chosen]
    missing = [name for name in report.fresh if name in ours and not _may_be_fresh(name)]
    if missing or differing or surplus:
        wanted = {name: expected[places[name]] for name in differing}
        raise UserError(_describe_difference(report.path, weights, wanted, differing, missing, surplus))
    return chosen


def _official_swin_names(weights: dict[str, Tensor]) -> dict[str, str]:
    """timm's names to those of the Swin release: timm counts the merging of patches to the stage after it."""
    if "layers.3.downsample.reduction.weight" not in weights:
        return {}
    renamed = {}
    for name in weights:
        parts = name.split(".")
        if parts[0] == "layers" and parts[2:3] == ["downsample"] and parts[1].isdecimal():
            renamed[name] = ".".join(["layers", str(int(parts[1]) - 1), *parts[2:]])
    return renamed


def _may_be_fresh(name: str) -> bool:
    """Of the backbone: what detection adds to it, buffers that follow from the architecture, the unused
    ``fc``."""
    rest = name.removeprefix(_BACKBONE)
    added = rest.startswith(("norm1.", "norm2.", "norm3.", "base.fc."))
    return added or rest.endswith(("relative_position_index", "num_batches_tracked"))


def _is_image_classifier(name: str) -> bool:
    """What classification has and detection has no use for."""
    return name.startswith(("fc.", "head.", "norm.")) or name.endswith("attn_mask")


def _tell(report: LoadReport) -> None:
    _log.info(
        "loaded %d%s weights from %s", len(report.loaded), " averaged" if report.averaged else "", report.path
    )
    for what, names in (
        ("converted", list(report.converted)),
        ("initial values kept", report.fresh),
        ("in the file, without use", report.unused),
    ):
        if names:
            _log.warning("%s: %s: %d, %s", report.path, what, len(names), _shortened(names))


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
