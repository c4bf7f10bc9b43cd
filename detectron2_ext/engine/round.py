"""One call of the training stage: train to the end of the next round, evaluate, tell the generator."""

from __future__ import annotations

import logging

import torch
from fvcore.common.config import CfgNode

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.loader import build_pool, build_train_loader, training_set_name
from detectron2_ext.engine.checkpoints import RunCheckpoints, read_checkpoint
from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.feedback import make_feedback
from detectron2_ext.engine.loop import seed_iteration, train
from detectron2_ext.engine.metrics import Reporter
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.step import TrainingStep
from detectron2_ext.engine.validation import read_test_set, validate
from detectron2_ext.modeling import build_model, load_weights
from exchange import files
from exchange.annotations import read_annotations
from exchange.catalog import dataset_paths
from exchange.config import from_repository
from exchange.feedback import read_feedback, write_feedback
from exchange.layout import RunLayout

_log = logging.getLogger(__name__)


def run_round(cfg: CfgNode, layout: RunLayout, ranks: Ranks) -> None:
    """Finishes the first round of the run that has no feedback yet; says so when there is none left.

    Starts from the last checkpoint, so a call that was killed is made good by the next one. Round ``r`` lasts
    to iteration ``(r + 1) * SOLVER.ROUND_ITERS``, the last one to SOLVER.MAX_ITER.

    Raises UserError, with the last checkpoint intact, for whatever of pool, data or settings does not fit.
    """
    solver = cfg.SOLVER
    checkpoints = RunCheckpoints(layout.train_dir, solver.ROUND_ITERS, solver.KEEP_CHECKPOINTS)
    dataset, image_counts = read_training_set(cfg)
    state = start_or_resume(cfg, image_counts, checkpoints, ranks)
    if pastes_from_run(cfg) and state.iteration == 0:
        evaluate_initial(cfg, layout, checkpoints, state, ranks)

    round_ = max(state.iteration - 1, 0) // solver.ROUND_ITERS
    if state.iteration and files.exists(layout.feedback_history(round_)):
        round_ += 1
    end = min((round_ + 1) * solver.ROUND_ITERS, solver.MAX_ITER)
    if round_ * solver.ROUND_ITERS >= solver.MAX_ITER:
        _log.info("all %d iterations are done: nothing left to train", solver.MAX_ITER)
        return

    if state.iteration < end:
        _train_to(end, round_, dataset, cfg, layout, checkpoints, state, ranks)
    _evaluate(round_, cfg, layout, checkpoints, state, ranks)


def evaluate_initial(
    cfg: CfgNode, layout: RunLayout, checkpoints: RunCheckpoints, state: TrainingState, ranks: Ranks
) -> None:
    """Writes the feedback of the starting weights (``feedback/initial.json``), once.

    With staleness 1 it is what round 1 is generated from.
    """
    if files.exists(layout.feedback_file):
        _log.info("%s is there already: the starting weights are not evaluated", layout.feedback_file)
        return
    if state.iteration:
        state.load_state_dict(read_checkpoint(checkpoints.path(0)))
    _evaluate(-1, cfg, layout, checkpoints, state, ranks)


def read_training_set(cfg: CfgNode) -> tuple[DetectionDataset, list[int]]:
    """The training images and, for the federated loss, the number of them that show each class."""
    annotation_file, image_root = dataset_paths(training_set_name(cfg), cfg)
    annotations = read_annotations(annotation_file)
    return DetectionDataset(annotations, image_root), annotations.image_counts().tolist()


def start_or_resume(
    cfg: CfgNode, image_counts: list[int], checkpoints: RunCheckpoints, ranks: Ranks
) -> TrainingState:
    """The state of the last checkpoint; without one that of MODEL.WEIGHTS (or random), which is saved."""
    seed_iteration(cfg.SEED, -1, rank=0)
    model = build_model(cfg, image_counts).to(ranks.device)
    if cfg.SOLVER.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    latest = checkpoints.latest()
    if latest is None and cfg.MODEL.WEIGHTS:
        load_weights(model, from_repository(cfg.MODEL.WEIGHTS), use_ema=True)
    state = TrainingState.start(model, cfg)
    if latest is not None:
        state.load_state_dict(read_checkpoint(latest))
        _log.info("resumed from %s", latest)
    ranks.barrier()
    if ranks.is_first:
        checkpoints.remove_leftovers()
        if latest is None:
            checkpoints.save(state)
    ranks.barrier()
    return state


def pastes_from_run(cfg: CfgNode) -> bool:
    """Whether training pastes what the first two stages of this run make."""
    return cfg.INPUT.USE_COPY_METHOD != "none" and cfg.INPUT.INST_POOL_FEED


def _train_to(
    end: int,
    round_: int,
    dataset: DetectionDataset,
    cfg: CfgNode,
    layout: RunLayout,
    checkpoints: RunCheckpoints,
    state: TrainingState,
    ranks: Ranks,
) -> None:
    if pastes_from_run(cfg):
        done = layout.annotations_done(round_)
        if not files.exists(done):
            _log.info("waiting for the pool of round %d: %s", round_, done)
        files.wait_for(done, f"the pool of round {round_} from stage 2", cfg.FEEDBACK.TIMEOUT)
    history = layout.feedback_history(round_ - 1)
    loader = build_train_loader(
        cfg,
        start_iteration=state.iteration,
        num_iterations=end - state.iteration,
        rank=ranks.rank,
        world_size=ranks.world_size,
        dataset=dataset,
        pool=build_pool(cfg, layout, round_, dataset),
        feedback=read_feedback(history) if files.exists(history) else None,
    )
    reporter = Reporter(
        files.join(layout.train_dir, "metrics.json"), state.iteration, end, f"round {round_}", ranks
    )
    _log.info("round %d: training from iteration %d to %d", round_, state.iteration, end)
    try:
        train(
            state,
            TrainingStep.from_config(state, ranks, cfg),
            loader,
            end,
            checkpoints=checkpoints,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            reporter=reporter,
            log_period=cfg.SOLVER.LOG_PERIOD,
            seed=cfg.SEED,
            ranks=ranks,
        )
    finally:
        reporter.close()


def _evaluate(
    round_: int,
    cfg: CfgNode,
    layout: RunLayout,
    checkpoints: RunCheckpoints,
    state: TrainingState,
    ranks: Ranks,
) -> None:
    name = cfg.DATASETS.TEST[0]
    checkpoint = checkpoints.path(state.iteration)
    ranks.share(state.evaluated)  # statistics of batch norm are each process's own
    evaluation = validate(
        cfg,
        state.evaluated,
        name,
        files.join(layout.train_dir, "inference"),
        ranks,
        round=round_,
        iteration=state.iteration,
        checkpoint=checkpoint,
    )
    if evaluation:
        before = checkpoints.path(round_ * cfg.SOLVER.ROUND_ITERS) if round_ >= 0 else None
        feedback = make_feedback(
            evaluation,
            round_=round_,
            iteration=state.iteration,
            checkpoint=checkpoint,
            before=before,
            dataset=name,
            category_ids=read_test_set(cfg, name)[0].category_ids.tolist(),
        )
        write_feedback(layout, feedback)
        _log.info("wrote %s", layout.feedback_history(round_))
    ranks.barrier()
