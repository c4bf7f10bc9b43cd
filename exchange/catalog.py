"""Data sets by name, laid out as Detectron2 documents it, or any annotation file given in the YAML."""

import os

from fvcore.common.config import CfgNode

from exchange import files
from exchange.annotations import AnnotationFile, join, read_annotations
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
    """The same for the entries ``[name, annotation file, image folder]`` of ``DATASETS.CUSTOM``.

    The paths in a YAML of this project are absolute by now (:func:`~exchange.config.load_config`).
    """
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
            f"the annotations of data set {name!r} are not at {annotation_file}: put them there, or correct "
            + (
                "the entry in DATASETS.CUSTOM, whose paths are relative to its YAML"
                if name in custom_datasets(cfg)
                else "DETECTRON2_DATASETS, the folder that holds the data sets"
            )
        )
    return annotation_file, image_folder


def read_training_set(cfg: CfgNode) -> tuple[AnnotationFile, str]:
    """Annotations and image folder of DATASETS.TRAIN; its categories are the classes of the run.

    Those of DATASETS.EXTRA_CATEGORIES are among them, see :func:`with_extra_categories`.

    Several sets become one: images and annotations are numbered anew, as ids may collide, and the images' names begin
    with their folders, so that the folder returned is empty. Raises UserError where none is named, for sets of
    different categories, and as :func:`dataset_paths` and :func:`~exchange.annotations.read_annotations`.
    """
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN names no data set: name one or more")
    paths = [dataset_paths(name, cfg) for name in cfg.DATASETS.TRAIN]
    parts = [(read_annotations(file), folder) for file, folder in paths]
    whole, root = parts[0]
    if len(parts) == 1:
        return with_extra_categories(cfg, whole), root
    for part, _ in parts:
        if part.category_names != whole.category_names:
            raise UserError(
                f"DATASETS.TRAIN: the categories of {part.path} are not those of {whole.path}: train on sets with the "
                "same ids and names"
            )
    return with_extra_categories(cfg, join(parts)), ""


def with_extra_categories(cfg: CfgNode, annotations: AnnotationFile) -> AnnotationFile:
    """A data set with the categories of DATASETS.EXTRA_CATEGORIES, if there are any, as classes behind its own.

    A record that the data set has, too, by its id and name, is the data set's. Raises UserError where another one has
    not an id above the data set's, or has a name of it, where there is no other, and for a file in another format.
    """
    if not cfg.DATASETS.EXTRA_CATEGORIES:
        return annotations
    path = from_repository(cfg.DATASETS.EXTRA_CATEGORIES)
    content = files.read_json(path)
    records = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise UserError(
            f"{path} (DATASETS.EXTRA_CATEGORIES) is no list of categories, and has none: name another"
        )
    listed = AnnotationFile.of_records(path, images=[], annotations=[], categories=records).categories
    names = annotations.category_names
    extra = [record for record in listed if names.get(record["id"]) != record["name"]]
    last = max(names, default=-1)
    for record in extra:
        if record["id"] <= last or record["name"] in names.values():
            raise UserError(
                f"{path} (DATASETS.EXTRA_CATEGORIES): category {record['id']}, {record['name']!r}, is not beyond those "
                f"of {annotations.path}: give it an id above {last} and a name that is not there, or leave it out"
            )
    if not extra:
        raise UserError(
            f"{path} lists no category that {annotations.path} has not: leave DATASETS.EXTRA_CATEGORIES out"
        )
    return annotations.with_extra_categories(path, extra)


def with_classes_of(cfg: CfgNode, annotations: AnnotationFile) -> CfgNode:
    """``cfg`` with NUM_CLASSES and NUM_EXTRA_CLASSES of MODEL.ROI_HEADS by the categories of ``annotations``.

    Raises UserError where the former setting is another number, with or without the extra ones.
    """
    given, categories = cfg.MODEL.ROI_HEADS.NUM_CLASSES, len(annotations.categories)
    if given not in (0, categories - annotations.num_extra, categories):
        raise UserError(
            f"{annotations.path} has {categories} categories, but MODEL.ROI_HEADS.NUM_CLASSES is {given}: leave that "
            "out, or name another data set in DATASETS"
        )
    known = cfg.clone()
    known.defrost()
    known.MODEL.ROI_HEADS.NUM_CLASSES = categories
    known.MODEL.ROI_HEADS.NUM_EXTRA_CLASSES = annotations.num_extra
    known.freeze()
    return known


def _below_root(paths: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    root = datasets_root()
    return {
        name: (os.path.join(root, file), os.path.join(root, folder)) for name, (file, folder) in paths.items()
    }
