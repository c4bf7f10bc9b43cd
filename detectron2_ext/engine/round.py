"""One call of the training stage: train to the end of the next round, or of all, evaluate, tell the generator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from fvcore.common.config import CfgNode

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.checkpoints import RunCheckpoints, read_checkpoint
from detectron2_ext.engine.feedback import make_feedback
from detectron2_ext.engine.loop import is_due, seed_iteration
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.tensorboard import add_allocation, add_scores, open_board
from detectron2_ext.engine.train_loader import build_train_loader
from detectron2_ext.evaluation.evaluator import explain_nothing, format_table, read_test_set, read_test_sets
from detectron2_ext.evaluation.scoring import Evaluation
from detectron2_ext.modeling import build_detector, load_weights
from detectron2_ext.paste.build import build_pool
from exchange import files
from exchange.annotations import AnnotationFile
from exchange.catalog import with_extra_categories
from exchange.config import from_repository
from exchange.feedback import read_feedback, source_round, write_feedback
from exchange.layout import RunLayout
from exchange.locks import in_turn
from exchange.run import claim_run, round_iterations
from exchange.seconds import Stopwatch
from exchange.waiting import wait_for

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """``train`` is called like :func:`~detectron2_ext.engine.loop.train_round`, ``validate`` like
    :func:`~detectron2_ext.evaluation.evaluator.validate`."""

    train: Callable[..., None]
    validate: Callable[..., Evaluation | None]


class TrainingRun:
    """The training stage of a run: its training set and its state, which begins where the last call ended.

    ``training_set``: annotations and image folder, as :func:`~exchange.catalog.read_training_set` gives them.

    Without a checkpoint it begins with MODEL.WEIGHTS (their average, where the file has one; random weights where
    the setting is empty), which are then saved as ``train/model_initial.pth``.

    Raises UserError for a data set, weights or settings that do not fit.
    """

    def __init__(
        self,
        cfg: CfgNode,
        layout: RunLayout,
        ranks: Ranks,
        engine: Engine,
        training_set: tuple[AnnotationFile, str],
    ) -> None:
        self._cfg, self._layout, self._ranks, self._engine = cfg, layout, ranks, engine
        self._checkpoints, self._watch = run_checkpoints(cfg, layout), Stopwatch(layout, "train")
        annotations, image_root = training_set
        read_test_sets(cfg, like=annotations)  # so that what is wrong with them is said before the training
        self._dataset = DetectionDataset(annotations, image_root)
        self._state = self._start_or_resume(annotations)
        self._board: SummaryWriter | None = None

    def finish_round(self) -> None:
        """Finishes the first round that the generator has not been told about; says so when there is none.

        A call that was killed is made good by the next one. Round ``r`` lasts to iteration
        ``(r + 1) * SOLVER.ROUND_ITERS``, the last one to SOLVER.MAX_ITER, as does the only one of a run without
        rounds (:func:`~exchange.run.round_iterations`). In between all sets of DATASETS.TEST are evaluated after
        every TEST.EVAL_PERIOD iterations.

        Raises UserError, with the last checkpoint intact, when the training cannot go on.
        """
        cfg, state, layout = self._cfg, self._state, self._layout
        with open_board(cfg, layout.train_dir, state.iteration, self._ranks) as self._board:
            if state.iteration == 0 and pastes_from_run(cfg):
                self.evaluate_initial()
            unfinished = unfinished_round(
                state.iteration,
                round_iterations(cfg),
                cfg.SOLVER.MAX_ITER,
                is_told=lambda round_: files.exists(layout.feedback_history(round_)),
            )
            if unfinished is None:
                _log.info("all %d iterations are done: nothing left to train", cfg.SOLVER.MAX_ITER)
                return
            round_, end = unfinished
            if state.iteration < end:
                self._train(round_, end)
            self._evaluate(round_)

    def evaluate_initial(self) -> None:
        """Writes the feedback of the starting weights, unless it is there.

        With staleness 1 it is what round 1 is generated from.
        """
        told = self._layout.feedback_history(-1)
        if files.exists(told):
            _log.info("%s is there: the starting weights are not evaluated again", told)
            return
        if self._state.iteration:
            self._state.load_state_dict(read_checkpoint(self._checkpoints.path(0)))
        self._evaluate(-1)

    def _start_or_resume(self, annotations: AnnotationFile) -> TrainingState:
        cfg, ranks = self._cfg, self._ranks
        seed_iteration(cfg.SEED, -1, rank=0)
        model = build_detector(cfg, annotations.image_counts().tolist()).to(ranks.device)
        if cfg.SOLVER.CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
        latest = self._checkpoints.latest()
        if latest is None and cfg.MODEL.WEIGHTS:
            weights, new = from_repository(cfg.MODEL.WEIGHTS), cfg.MODEL.NEW_CLASSIFIER
            names = list(annotations.category_names.values())
            load_weights(model, weights, use_ema=True, new_classifier=new, classes=names)
        state = TrainingState.start(model, cfg, annotations.categories)
        if latest is not None:
            state.load_state_dict(read_checkpoint(latest))
            _log.info("resumed from %s", latest)
        ranks.barrier()
        if ranks.is_first:
            claim_run(cfg)
        if ranks.is_first and latest is None:
            self._checkpoints.save(state)
        ranks.barrier()
        return state

    def _train(self, round_: int, end: int) -> None:
        cfg, layout, ranks, state = self._cfg, self._layout, self._ranks, self._state
        if pastes_from_run(cfg):
            done, what = layout.annotations_done(round_), f"the pool of round {round_}"
            with self._measure(round_, "waiting (stage 3)"):
                wait_for(done, what, "mrca segment, after mrca generate", cfg.FEEDBACK.TIMEOUT)
        told = layout.feedback_history(source_round(round_, cfg.FEEDBACK.STALENESS))
        feedback = read_feedback(told) if files.exists(told) else None
        pool = build_pool(cfg, layout, round_, self._dataset)
        _log.info("round %d: training from iteration %d to %d", round_, state.iteration, end)
        if self._board:
            add_allocation(self._board, state.iteration, layout, round_)
        for stop in stops(state.iteration, end, cfg.TEST.EVAL_PERIOD):
            self._validate(round_, [name for name in cfg.DATASETS.TEST if self._owes_scores(name)])
            loader = build_train_loader(
                cfg,
                start_iteration=state.iteration,
                num_iterations=stop - state.iteration,
                rank=ranks.rank,
                world_size=ranks.world_size,
                dataset=self._dataset,
                pool=pool,
                feedback=feedback,
            )
            with self._measure(round_, "training"):
                self._engine.train(
                    cfg,
                    state,
                    loader,
                    stop,
                    end=end,
                    checkpoints=self._checkpoints,
                    folder=layout.train_dir,
                    title=f"round {round_}",
                    ranks=ranks,
                    board=self._board,
                )

    def _measure(self, round_: int, work: str) -> AbstractContextManager[None]:
        """Counts the seconds of a block, of the first process alone."""
        return self._watch.measure(round_, work) if self._ranks.is_first else nullcontext()

    def _owes_scores(self, name: str) -> bool:
        """Whether an evaluation on the set ``name`` is due now, and not done."""
        done, period = self._state.iteration, self._cfg.TEST.EVAL_PERIOD
        return done > 0 and is_due(done, period) and not files.exists(self._scores(name))

    def _scores(self, name: str) -> str:
        """Where the scores of the present state on the set ``name`` stay."""
        return self._layout.scores(name, self._checkpoints.path(self._state.iteration))

    def _validate(self, round_: int, names: Sequence[str]) -> list[Evaluation | None]:
        """The scores of the present state on the sets ``names``; None each but in the first process."""
        state, folder = self._state, files.join(self._layout.train_dir, "inference")
        if names:
            # Batch norm's statistics are each process's own.
            self._ranks.share([*state.evaluated.parameters(), *state.evaluated.buffers()])
        evaluations = []
        for name in names:
            with evaluating(self._layout, self._ranks), self._measure(round_, "evaluating"):
                evaluation = self._engine.validate(
                    self._cfg,
                    state.evaluated,
                    name,
                    folder,
                    self._ranks,
                    round=round_,
                    iteration=state.iteration,
                    checkpoint=self._checkpoints.path(state.iteration),
                )
                if evaluation:
                    files.write_bytes(
                        self._scores(name), files.read_bytes(files.join(folder, name, "metrics.json"))
                    )
            if evaluation:
                if self._board:
                    add_scores(self._board, state.iteration, name, evaluation)
                _log.info("scores on %s in percent:\n%s", name, format_table(evaluation))
                if (why := explain_nothing(evaluation)) and state.iteration:
                    _log.warning("%s: %s", name, why)
            evaluations.append(evaluation)
        return evaluations

    def _evaluate(self, round_: int) -> None:
        """Evaluates on all of DATASETS.TEST; the scores of the first are the feedback."""
        cfg, layout, state = self._cfg, self._layout, self._state
        name, checkpoint = cfg.DATASETS.TEST[0], self._checkpoints.path(state.iteration)
        evaluation = self._validate(round_, cfg.DATASETS.TEST)[0]
        if evaluation:
            before = round_ * round_iterations(cfg)
            feedback = make_feedback(
                evaluation,
                round_=round_,
                iteration=state.iteration,
                checkpoint=checkpoint,
                weights=state.evaluated.state_dict(),
                before=self._checkpoints.path(before) if round_ >= 0 else None,
                dataset=name,
                category_ids=with_extra_categories(cfg, read_test_set(cfg, name)[0]).category_ids.tolist(),
            )
            write_feedback(layout, feedback)
            _log.info("wrote %s", layout.feedback_history(round_))
        self._ranks.barrier()


@contextmanager
def evaluating(layout: RunLayout, ranks: Ranks) -> Iterator[None]:
    """Waits for another evaluation in this run, of whatever checkpoint: both write to the same files."""
    with in_turn(layout, "evaluate") if ranks.is_first else nullcontext():
        ranks.barrier()
        yield


def run_checkpoints(cfg: CfgNode, layout: RunLayout) -> RunCheckpoints:
    """The checkpoints of a run."""
    return RunCheckpoints(layout.train_dir, round_iterations(cfg), cfg.SOLVER.KEEP_CHECKPOINTS)


def unfinished_round(
    iteration: int, length: int, last: int, is_told: Callable[[int], bool]
) -> tuple[int, int] | None:
    """Number and end of the first round that lacks iterations, or that the generator has not been told about.

    None where there is none. ``iteration``: how many are done; ``length``: of a round; ``last``: all iterations;
    ``is_told``: whether the feedback of a round is there.
    """
    round_ = max(iteration - 1, 0) // length
    end = min((round_ + 1) * length, last)
    if iteration < end or not is_told(round_):
        return round_, end
    return (round_ + 1, min(end + length, last)) if end < last else None


def stops(start: int, end: int, period: int) -> list[int]:
    """The multiples of ``period`` between two iterations, and the later one; a period of 0 or less has none."""
    return [*range(start - start % period + period, end, period), end] if period > 0 else [end]


def pastes_from_run(cfg: CfgNode) -> bool:
    """Whether training pastes what the first two stages of this run make."""
    return cfg.INPUT.USE_COPY_METHOD != "none" and cfg.INPUT.INST_POOL_FEED
