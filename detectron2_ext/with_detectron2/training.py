"""Detectron2's trainer and evaluators at work on this project's data and network."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, default_writers, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator, inference_on_dataset
from fvcore.common.config import CfgNode
from torch import nn

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import Batch, build_test_loader
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.checkpoints import RunCheckpoints
from detectron2_ext.engine.loop import is_due, mixed_precision, seed_iteration
from detectron2_ext.engine.optimizer import Clip, build_clip
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.evaluation import Evaluation
from detectron2_ext.evaluation.confusions import Confusions
from detectron2_ext.evaluation.evaluator import as_json, read_test_set
from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import CocoTruth
from detectron2_ext.with_detectron2.registration import (
    convert_outputs,
    describe_dataset,
    register_custom_datasets,
)
from exchange import files
from exchange.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


def train_round(
    cfg: CfgNode,
    state: TrainingState,
    loader: Iterable[Batch],
    stop: int,
    *,
    end: int,
    checkpoints: RunCheckpoints,
    folder: str,
    title: str,
    ranks: Ranks,
    board: SummaryWriter | None = None,
) -> None:
    """As :func:`detectron2_ext.engine.loop.train_round`; ``title`` is not shown, and Detectron2 writes files of its own
    for TensorBoard beside the ``board``'s.

    Raises UserError, besides, for settings that Detectron2's trainer has no counterpart of.
    """
    _check(cfg, folder, ranks)
    parts = {"optimizer": state.optimizer, "scheduler": state.schedule, "scaler": state.scaler}
    if state.ema:
        parts["model_ema"] = state.ema.model
    checkpointer = DetectionCheckpointer(state.model, folder, save_to_disk=ranks.is_first, **parts)
    batches = _SeededBatches(loader, state, cfg.SEED, ranks.rank)
    trainer = _build_trainer(cfg, ranks.parallel(state.model), batches, state)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            _Follow(state, build_clip(cfg)),
            hooks.LRScheduler(state.optimizer, state.schedule),
            _Save(state, checkpointer, checkpoints, cfg.SOLVER.CHECKPOINT_PERIOD, ranks),
            hooks.PeriodicWriter(default_writers(folder, end), cfg.SOLVER.LOG_PERIOD)
            if ranks.is_first
            else None,
        ]
    )
    try:
        trainer.train(state.iteration, stop)
    except FloatingPointError as error:
        raise UserError(
            f"{str(error).splitlines()[0]} Lower SOLVER.BASE_LR, or train with --engine own, which names the images; "
            "the last checkpoint is intact"
        ) from error


def _check(cfg: CfgNode, folder: str, ranks: Ranks) -> None:
    if cfg.SOLVER.ACCUMULATION_STEPS != 1:
        raise UserError("SOLVER.ACCUMULATION_STEPS: Detectron2's trainer has no such thing, set it to 1")
    if cfg.INPUT.ACTIVE_SELECT:
        raise UserError("INPUT.ACTIVE_SELECT: Detectron2's trainer has no such thing, set it to False")
    if cfg.SOLVER.AMP.ENABLED and ranks.device.type != "cuda":
        raise UserError("SOLVER.AMP.ENABLED: Detectron2's mixed precision needs a GPU, set it to False")
    if "://" in folder:
        raise UserError(f"OUTPUT_DIR: Detectron2 writes to folders of this machine, not to {folder}")


def _build_trainer(
    cfg: CfgNode, network: nn.Module, batches: Iterable[Batch], state: TrainingState
) -> SimpleTrainer:
    dtype = mixed_precision(cfg)
    if dtype is None:
        return _ScalingTrainer(network, batches, state)
    return AMPTrainer(network, batches, state.optimizer, grad_scaler=state.scaler, precision=dtype)


class _ScalingTrainer(SimpleTrainer):
    """Scales the losses where the state does, and leaves to the network what of it is in half precision (FP16)."""

    def __init__(self, network: nn.Module, batches: Iterable[Batch], state: TrainingState) -> None:
        super().__init__(network, batches, state.optimizer)
        self._scaler = state.scaler

    def run_step(self) -> None:
        asked = time.perf_counter()
        batch = next(self._data_loader_iter)
        waited = time.perf_counter() - asked
        losses = self.model(batch)
        self.optimizer.zero_grad()
        self._scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self._write_metrics(losses, waited)
        self._scaler.step(self.optimizer)
        self._scaler.update()


class _SeededBatches:
    """The batches, each handed out with the random numbers of its iteration set."""

    def __init__(self, loader: Iterable[Batch], state: TrainingState, seed: int, rank: int) -> None:
        self._loader, self._state, self._seed, self._rank = loader, state, seed, rank

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            seed_iteration(self._seed, self._state.iteration, self._rank)
            yield batch


class _Follow(HookBase):
    """What a step of this project does around the optimiser's: clipping before it, the average after it."""

    def __init__(self, state: TrainingState, clip: Clip) -> None:
        self._state, self._clip = state, clip

    def after_backward(self) -> None:
        self._state.scaler.unscale_(self._state.optimizer)
        self._clip(self._state.learning_parameters())

    def after_step(self) -> None:
        if self._state.ema:
            self._state.ema.update()
        self._state.iteration += 1


class _Save(HookBase):
    """Checkpoints where the own loop writes them, under the names that it gives them."""

    def __init__(
        self,
        state: TrainingState,
        checkpointer: DetectionCheckpointer,
        checkpoints: RunCheckpoints,
        period: int,
        ranks: Ranks,
    ) -> None:
        self._state, self._checkpointer, self._checkpoints = state, checkpointer, checkpoints
        self._period, self._ranks = period, ranks

    def after_step(self) -> None:
        done: int = self._state.iteration
        if not is_due(done, self._period) and done != self.trainer.max_iter:
            return
        if self._ranks.is_first:
            name = self._checkpoints.path(done).rsplit("/", 1)[1].removesuffix(".pth")
            rest: dict[str, Any] = self._state.state_dict()
            for part in ("model", *self._checkpointer.checkpointables):  # which Detectron2 takes itself
                del rest[part]
            self._checkpointer.save(name, **rest)
            self._checkpoints.prune(done)
        self._ranks.barrier()


def validate(
    cfg: CfgNode, model: nn.Module, name: str, folder: str, ranks: Ranks, **context: Any
) -> Evaluation | None:
    """As :func:`detectron2_ext.evaluation.evaluator.validate`, with Detectron2's evaluator in charge.

    Its scores stand in ``metrics.json`` as ``detectron2``. It has none for each class of LVIS, which the generator
    needs; those returned here are computed from the predictions that it wrote.
    """
    annotations, image_root = read_test_set(cfg, name)
    register_custom_datasets(cfg)
    describe_dataset(name, annotations)
    _require_same_file(name, annotations.path)
    dataset = DetectionDataset(annotations, image_root)
    loader = build_test_loader(cfg, dataset, rank=ranks.rank, world_size=ranks.world_size)
    if cfg.TEST.EVALUATOR != "auto":
        raise UserError(
            "TEST.EVALUATOR: --engine detectron2 evaluates by the rules of LVIS or COCO, set it to auto"
        )
    truth = CocoTruth(annotations)
    target = files.join(folder, name)
    hook = model.register_forward_hook(convert_outputs)
    try:
        scores = inference_on_dataset(model, loader, _build_evaluator(truth, name, target))
    finally:
        hook.remove()
    if not ranks.is_first:
        return None
    _log.info("Detectron2's scores on %s: %s", name, scores)
    written = files.read_json(files.join(target, f"{truth.kind}_instances_results.json"))
    predictions, confusions = Predictions.from_json(written, truth.category_ids), Confusions(annotations)
    confusions.add_all(predictions)
    evaluation = dataclasses.replace(truth.score(predictions), confusions=confusions.by_class())
    told = {  # NaN: there is no such object
        kind: {metric: float(value) if np.isfinite(value) else None for metric, value in of_kind.items()}
        for kind, of_kind in scores.items()
    }
    report = as_json(evaluation, annotations, dataset=name, **context) | {"detectron2": told}
    files.write_json(files.join(target, "metrics.json"), report)
    return evaluation


def _build_evaluator(truth: CocoTruth, name: str, folder: str) -> DatasetEvaluator:
    if not truth.federated:
        return COCOEvaluator(name, output_dir=folder, max_dets_per_image=truth.max_detections)
    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]  # lvis 0.5.3 was written for an older NumPy
    return LVISEvaluator(name, output_dir=folder, max_dets_per_image=truth.max_detections)


def _require_same_file(name: str, annotation_file: str) -> None:
    known = MetadataCatalog.get(name).json_file
    if os.path.realpath(known) != os.path.realpath(annotation_file):
        raise UserError(
            f"Detectron2 takes the annotations of {name} from {known}, this project from {annotation_file}: set "
            "DETECTRON2_DATASETS to the folder of the data sets"
        )
