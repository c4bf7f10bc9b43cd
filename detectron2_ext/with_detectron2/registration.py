"""This project's network in Detectron2's registry, and its data sets in Detectron2's catalogues."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.config import CfgNode
from torch import nn

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.modeling import build_model
from detectron2_ext.with_detectron2.conversion import speak_detectron2
from exchange.annotations import AnnotationFile, read_annotations
from exchange.catalog import builtin_datasets, custom_datasets

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
