"""Makes the network, its configuration, its inputs and outputs and the data sets known to Detectron2."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import detectron2.structures as d2
from detectron2.config import CfgNode as Detectron2Config
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.distributed import named_device
from detectron2_ext.modeling import build_model
from detectron2_ext.structures import BitMasks, Instances
from exchange.annotations import AnnotationFile, read_annotations
from exchange.catalog import builtin_datasets, custom_datasets
from exchange.config import from_repository
from exchange.run import run_layout

_log = logging.getLogger(__name__)


def register() -> None:
    """Makes the network and the data sets known to Detectron2; what has their names there already stays."""
    if CustomRCNN.__name__ in META_ARCH_REGISTRY:
        _log.warning(
            "Detectron2 knows another %s already: import detectron2_ext first to use its own",
            CustomRCNN.__name__,
        )
    else:
        META_ARCH_REGISTRY.register(CustomRCNN)
    for name, (annotation_file, image_root) in builtin_datasets().items():
        if name not in DatasetCatalog:
            _register_dataset(name, annotation_file, image_root)


def register_custom_datasets(cfg: CfgNode) -> None:
    """Makes the entries of DATASETS.CUSTOM known to Detectron2; they replace what has their names."""
    for name, (annotation_file, image_root) in custom_datasets(cfg).items():
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
        _register_dataset(name, annotation_file, image_root)


def CustomRCNN(cfg: CfgNode) -> nn.Module:
    """The detector of ``cfg`` for Detectron2's ``build_model``: takes and returns Detectron2's structures."""
    box = cfg.MODEL.ROI_BOX_HEAD
    if box.USE_FED_LOSS and not box.CAT_FREQ_PATH:
        _log.warning(
            "the federated loss draws all classes alike unless loaded weights bring their frequencies: for a "
            "training from random weights set MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH"
        )
    return speak_detectron2(build_model(cfg))


def describe_dataset(name: str, annotations: AnnotationFile) -> None:
    """Tells Detectron2's metadata the classes of a data set, as far as it does not know them."""
    metadata = MetadataCatalog.get(name)
    facts = {
        "thing_classes": [category["name"] for category in annotations.categories],
        "thing_dataset_id_to_contiguous_id": {
            category_id: index for index, category_id in enumerate(annotations.category_ids.tolist())
        },
    }
    metadata.set(**{key: value for key, value in facts.items() if not hasattr(metadata, key)})


def _register_dataset(name: str, annotation_file: str, image_root: str) -> None:
    DatasetCatalog.register(name, partial(_read_dataset, name, annotation_file, image_root))
    MetadataCatalog.get(name).set(json_file=annotation_file, image_root=image_root)


def _read_dataset(name: str, annotation_file: str, image_root: str) -> list[dict[str, Any]]:
    annotations = read_annotations(annotation_file)
    describe_dataset(name, annotations)
    return DetectionDataset(annotations, image_root).dicts()


def detectron2_config(cfg: CfgNode) -> Detectron2Config:
    """Detectron2's defaults, overridden and extended by all that ``cfg`` says, for its ``DefaultPredictor`` etc.

    The entries of DATASETS.CUSTOM become known to its catalogue.
    """
    merged = get_cfg()
    merged.set_new_allowed(True)
    merged.merge_from_other_cfg(cfg)
    merged.set_new_allowed(False)
    merged.MODEL.DEVICE = str(named_device(cfg.MODEL.DEVICE))
    merged.MODEL.WEIGHTS = from_repository(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else ""
    merged.OUTPUT_DIR = run_layout(cfg).train_dir
    register_custom_datasets(cfg)
    return merged


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
    if instances.has("instance_source"):
        converted.instance_source = instances.instance_source
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
