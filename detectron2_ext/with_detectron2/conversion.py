"""The two projects' structures of annotated and found objects, from one into the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import detectron2.structures as d2
from torch import Tensor, nn

from detectron2_ext.structures import BitMasks, Instances


def speak_detectron2(network: nn.Module) -> nn.Module:
    """Makes ``network`` take Detectron2's ``Instances`` in training and return them in evaluation.

    Inputs of this project's own are taken as before. Names of parameters do not change. Returns ``network``.
    """
    network.register_forward_pre_hook(_convert_inputs)
    network.register_forward_hook(convert_outputs)
    return network


def convert_outputs(network: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Forward hook: detections as Detectron2's ``Instances``; losses stay as they are."""
    if isinstance(outputs, Mapping):
        return outputs
    return [{"instances": to_detectron2(entry["instances"])} for entry in outputs]


def to_detectron2(instances: Instances) -> d2.Instances:
    """Found objects: ``pred_boxes`` become ``Boxes``, all else stays."""
    fields = {name: d2.Boxes(value) if name == "pred_boxes" else value for name, value in instances.fields()}
    return d2.Instances(instances.image_size, **fields)


def from_detectron2(instances: d2.Instances) -> Instances:
    """Annotated objects with ``gt_boxes``, ``gt_classes`` and, where there are any, ``gt_masks``."""
    converted = Instances(
        instances.image_size, gt_boxes=instances.gt_boxes.tensor, gt_classes=instances.gt_classes
    )
    if instances.has("gt_masks"):
        converted.gt_masks = BitMasks.from_full(_full_masks(instances.gt_masks, instances.image_size))
    return converted


def _convert_inputs(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    (batched_inputs,) = inputs
    return ([_convert_input(entry) for entry in batched_inputs],)


def _convert_input(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(entry.get("instances"), d2.Instances):
        return entry
    return {**entry, "instances": from_detectron2(entry["instances"])}


def _full_masks(masks: d2.BitMasks | d2.PolygonMasks, image_size: tuple[int, int]) -> Tensor:
    """bool (N, H, W)."""
    if isinstance(masks, d2.PolygonMasks):
        masks = d2.BitMasks.from_polygon_masks(masks, *image_size)
    return masks.tensor
