"""Runs the network over a validation set, scores what it finds by the rules of its benchmark, and says so."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol

import torch
from fvcore.common.config import CfgNode
from tqdm import tqdm

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import Batch, build_test_loader
from detectron2_ext.distributed import Ranks
from detectron2_ext.evaluation.confusions import Confusions
from detectron2_ext.evaluation.pascal import OPEN_IMAGES, VOC, PascalTruth, read_ancestors
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import CocoTruth, Evaluation, Truth
from detectron2_ext.structures import Instances
from exchange import files
from exchange.annotations import AnnotationFile, read_annotations
from exchange.catalog import dataset_paths, with_extra_categories
from exchange.config import choose
from exchange.errors import UserError

_log = logging.getLogger(__name__)
_PART = re.compile(r"part\d+\.(json|npz|npy)")


def validate(
    cfg: CfgNode, model: Detector, name: str, folder: str, ranks: Ranks, **context: Any
) -> Evaluation | None:
    """Evaluates ``model`` on the data set ``name``; predictions and ``metrics.json`` go to ``folder/name``.

    ``context`` stands in front of the metrics. Returns the scores in the first process, None in the others.
    """
    annotations, image_root = read_test_set(cfg, name)
    dataset = DetectionDataset(annotations, image_root)
    loader = build_test_loader(cfg, dataset, rank=ranks.rank, world_size=ranks.world_size)
    target = files.join(folder, name)
    truth = build_truth(cfg, annotations)
    evaluation = evaluate_model(model, loader, truth, target, ranks, cfg.TEST.DETECTIONS_PER_IMAGE)
    if evaluation:
        files.write_json(
            files.join(target, "metrics.json"), as_json(evaluation, annotations, dataset=name, **context)
        )
    return evaluation


def read_test_set(cfg: CfgNode, name: str) -> tuple[AnnotationFile, str]:
    """Annotations and image folder of a data set; raises UserError if its classes are not the network's.

    DATASETS.EXTRA_CATEGORIES, of which it has no objects, are not among its categories.
    """
    annotation_file, image_root = dataset_paths(name, cfg)
    annotations = read_annotations(annotation_file)
    expected, whole = cfg.MODEL.ROI_HEADS.NUM_CLASSES, with_extra_categories(cfg, annotations)
    if expected not in (0, len(annotations.categories), len(whole.categories)):
        raise UserError(
            f"{whole.path} has {len(whole.categories)} categories, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES, or the number of categories of DATASETS.TRAIN, is {expected}: the two have "
            "to have the same, name another data set in DATASETS.TEST"
        )
    return annotations, image_root


def read_test_sets(cfg: CfgNode, like: AnnotationFile | None = None) -> dict[str, AnnotationFile]:
    """Annotations of the sets of DATASETS.TEST by their names, as :func:`read_test_set` gives them.

    Raises UserError where there is none, or one has other categories than ``like``, by default the first of them; those
    of DATASETS.EXTRA_CATEGORIES count.
    """
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST names no data set: name one, whose scores are the feedback")
    found = {name: read_test_set(cfg, name)[0] for name in cfg.DATASETS.TEST}
    for test_set in found.values():
        whole = with_extra_categories(cfg, test_set)
        like = whole if like is None else like
        if whole.category_names != like.category_names:
            raise UserError(
                f"DATASETS.TEST: the categories of {whole.path} are not those of {like.path}: test on sets with the "
                "same ids and names"
            )
    return found


def build_truth(cfg: CfgNode, annotations: AnnotationFile) -> Truth:
    """The truth of a data set for the benchmark that ``cfg.TEST.EVALUATOR`` names."""
    kinds: dict[str, Callable[[], Truth]] = {
        "auto": lambda: CocoTruth(annotations),
        "voc": lambda: PascalTruth(annotations, VOC),
        "openimages": lambda: PascalTruth(
            annotations, OPEN_IMAGES, read_ancestors(cfg.TEST.HIERARCHY, annotations)
        ),
    }
    return choose(cfg, "TEST.EVALUATOR", kinds)()


class Loader(Protocol):
    """Batches of images to predict, and how many there are."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


class Detector(Protocol):
    """A network whose detections have ``pred_masks`` as probabilities (N, S, S) over the boxes."""

    training: bool

    def detect(self, batched_inputs: Batch) -> list[Instances]: ...

    def train(self, mode: bool = True) -> Any: ...


def evaluate_model(
    model: Detector,
    loader: Loader,
    truth: Truth,
    folder: str,
    ranks: Ranks,
    max_detections: int = 300,
) -> Evaluation | None:
    """Predicts every image of ``loader`` and scores the predictions against ``truth``.

    Each process predicts the batches of its own loader. A thread makes run lengths of the masks while the network
    looks at the next batch; objects that the benchmark does not judge go to disk only, so memory stays small. All
    predictions end up in ``folder`` as ``lvis_instances_results.json`` or ``coco_instances_results.json``, ready for
    upload: the first process writes its own straight there, and those of the others behind them.

    Returns:
        The scores in the first process, None in the others.
    """
    result_file = files.join(folder, f"{truth.kind}_instances_results.json")
    part_file, judged_file, confusions_file = (
        [files.join(folder, f"part{rank}.{suffix}") for rank in range(ranks.world_size)]
        for suffix in ("json", "npz", "npy")
    )
    part_file[0] = result_file
    with files.atomic_writer(part_file[ranks.rank]) as part:
        if ranks.is_first:
            part.write(b"[")
        records = _Records(part, truth, max_detections)
        judged = _predict(model, loader, records, ranks)
        files.write_bytes(judged_file[ranks.rank], judged.to_bytes())
        if not ranks.is_first:
            files.write_bytes(confusions_file[ranks.rank], records.confusions.to_bytes())
        else:
            ranks.barrier()
            _append_parts(part, part_file[1:], records.empty)
            part.write(b"]")
    if not ranks.is_first:
        ranks.barrier()  # after its part is whole
        return None
    predictions = Predictions.concatenate([Predictions.from_bytes(files.read_bytes(p)) for p in judged_file])
    for path in confusions_file[1:]:
        records.confusions.add_bytes(files.read_bytes(path))
    for part_of_process in files.matches(folder, _PART):  # of more processes, too, that were stopped before
        files.remove(files.join(folder, part_of_process[0]))
    _log.info("scoring %d judged objects in %d images", len(predictions), len(truth.images))
    return dataclasses.replace(truth.score(predictions), confusions=records.confusions.by_class())


def _predict(model: Detector, loader: Loader, records: _Records, ranks: Ranks) -> Predictions:
    """Writes what the network finds to ``records``; returns what is judged."""
    training = model.training
    model.train(False)
    with ThreadPoolExecutor(1) as encoder:
        encoded: Future[None] | None = None
        for batch in tqdm(loader, desc="evaluating", unit="batch", disable=not ranks.is_first):
            with torch.inference_mode():
                found = [of_image.to("cpu") for of_image in model.detect(batch)]
            if encoded:
                encoded.result()
            encoded = encoder.submit(records.add, [record["image_id"] for record in batch], found)
        if encoded:
            encoded.result()
    model.train(training)
    return Predictions.concatenate(records.judged)


class _Records:
    """Writes the predictions of one process as JSON, without the brackets around them; keeps the ``judged`` and the
    ``confusions``."""

    def __init__(self, part: BinaryIO, truth: Truth, max_detections: int) -> None:
        self.judged: list[Predictions] = []
        self.confusions = Confusions(truth.annotations)
        self._part, self._truth, self._max_detections = part, truth, max_detections
        self.empty = True

    def add(self, image_ids: Sequence[int], found: Sequence[Instances]) -> None:
        for image_id, instances in zip(image_ids, found, strict=True):
            predictions = Predictions.from_instances(image_id, instances, self._max_detections)
            self.confusions.add(image_id, predictions)
            if len(predictions):
                lines = ",\n".join(predictions.to_json(self._truth.category_ids))
                self._part.write((b"" if self.empty else b",\n") + lines.encode())
                self.empty = False
                self.judged.append(predictions.select(self._truth.counted(predictions)))


def _append_parts(file: BinaryIO, parts: Sequence[str], empty: bool) -> None:
    for path in parts:
        with files.open_to_read(path) as part:
            start = part.read(1)
            if start:
                file.write(start if empty else b",\n" + start)
                shutil.copyfileobj(part, file, 1 << 22)
                empty = False


def format_table(evaluation: Evaluation) -> str:
    """Box and mask scores in percent, a row each, with a dash where there is nothing to average."""
    names = list(evaluation.box)
    rows = [["", *names]]
    for title, summary in (("box", evaluation.box), ("mask", evaluation.mask)):
        rows.append([title, *("-" if summary[name] is None else f"{summary[name]:.2f}" for name in names)])
    return "\n".join(" ".join([f"{row[0]:<4}", *(f"{cell:>6}" for cell in row[1:])]) for row in rows)


def format_classes(evaluation: Evaluation, annotations: AnnotationFile) -> str:
    """Box and mask AP of each class in percent, a row each in the order of their ids."""
    rows = [("id", "box", "mask", "class")]
    for category, *scores in zip(annotations.categories, evaluation.box_ap, evaluation.mask_ap, strict=True):
        cells = ("-" if score is None else f"{score:.2f}" for score in scores)
        rows.append((str(category["id"]), *cells, category["name"]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


def explain_nothing(evaluation: Evaluation) -> str | None:
    """What usually lies behind an AP that is 0 or unknown; None where something was found."""
    if evaluation.mask["AP"]:
        return None
    if evaluation.mask["AP"] is None:
        return "nothing can be scored: none of its images has an object to be found (see DATASETS.TEST)"
    return (
        "nothing was found (mask AP 0.00): usually the training was too short for the weights that it started from "
        "(SOLVER.MAX_ITER, MODEL.WEIGHTS), or boxes and masks are not where the objects are (mrca visualize data shows "
        "them), or training and test images differ much in size (INPUT)"
    )


def as_json(evaluation: Evaluation, annotations: AnnotationFile, **context: Any) -> dict[str, Any]:
    """All scores, per class too, with ``context`` (such as the checkpoint) in front. ``taken_for`` of a class: pairs of
    a category id (None: of none) and how many of its objects were taken for that, most first."""
    ids: dict[int | None, int | None] = dict(enumerate(annotations.category_ids.tolist()))
    per_class = [
        {"id": category["id"], "name": category["name"], "box_ap": box_ap, "mask_ap": mask_ap}
        for category, box_ap, mask_ap in zip(
            annotations.categories, evaluation.box_ap, evaluation.mask_ap, strict=True
        )
    ]
    for of_class, taken_for in zip(per_class, evaluation.confusions, strict=False):
        of_class["taken_for"] = [[ids.get(index), count] for index, count in taken_for.items()]
    return {**context, "box": evaluation.box, "mask": evaluation.mask, "classes": per_class}
