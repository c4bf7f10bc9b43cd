"""Data sets by name, laid out as Detectron2 documents it, or any annotation file given in the YAML."""

import os

from fvcore.common.config import CfgNode

from exchange import files
from exchange.config import from_repository
from exchange.errors import UserError

# name -> (annotation file, image folder), below $DETECTRON2_DATASETS; LVIS file names carry their split.
_BUILTIN = {
    "lvis_v1_train": ("lvis/lvis_v1_train.json", "coco"),
    "lvis_v1_val": ("lvis/lvis_v1_val.json", "coco"),
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "lvis_digits_train": ("lvis_digits/lvis_digits_train.json", "lvis_digits/images"),
    "lvis_digits_val": ("lvis_digits/lvis_digits_val.json", "lvis_digits/images"),
}


def datasets_root() -> str:
    """The folder of all data sets: $DETECTRON2_DATASETS, or ``datasets`` in the repository."""
    return os.environ.get("DETECTRON2_DATASETS", from_repository("datasets"))


def builtin_datasets() -> dict[str, tuple[str, str]]:
    """Annotation file and image folder of each data set that has a name here, whether or not it is on this machine."""
    return _below_root(_BUILTIN)


def custom_datasets(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """The same for the entries ``[name, annotation file, image folder]`` of ``DATASETS.CUSTOM``."""
    for entry in cfg.DATASETS.CUSTOM:
        if not isinstance(entry, list) or [type(part) for part in entry] != [str] * 3:
            raise UserError(
                "DATASETS.CUSTOM takes entries [name, annotation file, image folder]: fix the YAML"
            )
    return _below_root({name: (file, folder) for name, file, folder in cfg.DATASETS.CUSTOM})


def dataset_paths(name: str, cfg: CfgNode) -> tuple[str, str]:
    """Annotation file and image folder of the data set ``name``.

    Looks into ``DATASETS.CUSTOM`` first. Raises UserError for an unknown name or a missing annotation file.
    """
    known = builtin_datasets() | custom_datasets(cfg)
    if name not in known:
        raise UserError(
            f"there is no data set {name!r} (known: {', '.join(sorted(known))}): correct DATASETS.TRAIN or "
            "DATASETS.TEST, or describe it in DATASETS.CUSTOM"
        )
    annotation_file, image_folder = known[name]
    if not files.exists(annotation_file):
        raise UserError(
            f"the annotations of data set {name!r} are not at {annotation_file}: put them there, or set "
            "DETECTRON2_DATASETS to the folder that holds the data sets"
        )
    return annotation_file, image_folder


def _below_root(paths: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    root = datasets_root()
    return {
        name: (os.path.join(root, file), os.path.join(root, folder)) for name, (file, folder) in paths.items()
    }
