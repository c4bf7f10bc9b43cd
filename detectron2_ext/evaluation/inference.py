"""Runs the network over a validation set and scores what it finds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from typing import Protocol

import fsspec
import torch
from torch import nn
from tqdm import tqdm

from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.loading import Batch, load_batches
from detectron2_ext.evaluation.benchmark import Truth
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import Evaluation
from exchange import files

_log = logging.getLogger(__name__)


class Loader(Protocol):
    """Batches of images to predict, and how many there are."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


def evaluate_model(
    model: nn.Module,
    loader: Loader,
    truth: Truth,
    folder: str,
    ranks: Ranks,
    max_detections: int = 300,
) -> Evaluation | None:
    """Predicts every image of ``loader`` and scores the predictions against ``truth``.

    Each process predicts the batches of its own loader; masks become run lengths at once, and the objects
    that the benchmark does not judge go to disk only, so memory stays small. All predictions end up in
    ``folder`` as ``lvis_instances_results.json`` or ``coco_instances_results.json``, ready for upload.

    Returns:
        The scores in the first process, None in the others.
    """
    result_file = files.join(folder, f"{truth.kind}_instances_results.json")
    part_file, judged_file = (
        [files.join(folder, f"part{rank}.{suffix}") for rank in range(ranks.world_size)]
        for suffix in ("json", "npz")
    )
    judged: list[Predictions] = []
    training = model.training
    model.eval()
    with torch.inference_mode(), files.atomic_writer(part_file[ranks.rank]) as part:
        separator = b""
        for batch in tqdm(
            load_batches(loader),
            total=len(loader),
            desc="evaluating",
            unit="batch",
            disable=not ranks.is_first,
        ):
            for record, output in zip(batch, model(batch), strict=True):
                found = Predictions.from_instances(
                    record["image_id"], output["instances"].to("cpu"), max_detections
                )
                if len(found):
                    part.write(separator + ",\n".join(found.to_json(truth.category_ids)).encode())
                    separator = b",\n"
                    judged.append(found.select(truth.counted(found)))
    model.train(training)
    files.write_bytes(judged_file[ranks.rank], Predictions.concatenate(judged).to_bytes())
    ranks.barrier()
    if not ranks.is_first:
        return None
    _join_parts(part_file, result_file)
    predictions = Predictions.concatenate([Predictions.from_bytes(files.read_bytes(p)) for p in judged_file])
    for path in part_file + judged_file:
        files.remove(path)
    _log.info("scoring %d judged objects in %d images", len(predictions), len(truth.images))
    return truth.score(predictions)


def _join_parts(parts: list[str], target: str) -> None:
    with files.atomic_writer(target) as file:
        file.write(b"[")
        empty = True
        for path in parts:
            with fsspec.open(path, "rb") as part:
                start = part.read(1)
                if start:
                    file.write(start if empty else b",\n" + start)
                    shutil.copyfileobj(part, file, 1 << 22)
                    empty = False
        file.write(b"]")
