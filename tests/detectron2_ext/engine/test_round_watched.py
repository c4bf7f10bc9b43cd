"""What a round trains on: which pool, object sizes, class counts; and which weights it evaluates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine import round as engine_round
from detectron2_ext.engine.round import Engine, TrainingRun
from detectron2_ext.evaluation import evaluator
from exchange import files
from exchange.catalog import read_training_set
from exchange.config import load_config
from exchange.errors import UserError
from exchange.feedback import read_feedback, write_feedback
from exchange.images import encode_png
from exchange.layout import RunLayout
from exchange.seconds import read_seconds
from tests.detectron2_ext.engine.small_run import LAST_CLASSIFIER, call, write_config, write_pool
from tests.detectron2_ext.engine.tiny import assert_equal_weights, weights_of


@dataclasses.dataclass
class _Watched:
    """What two rounds did: the images of each, the names of the instances pasted into them, the network of each
    evaluation, what was shared before it, and of which rounds there was feedback whenever the processes met."""

    run: Path
    images: list[list[dict[str, Any]]]
    pasted: list[set[str]]
    evaluated: list[tuple[str, torch.nn.Module, dict[str, torch.Tensor]]]
    shared: list[list[torch.Tensor]]
    told: list[list[int]]


def told_of(layout: RunLayout) -> list[int]:
    return [round_ for round_ in (-1, 0, 1) if files.exists(layout.feedback_history(round_))]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> _Watched:
    """Two rounds that paste from the run's pool; the feedback of the first is made up in between."""
    folder = tmp_path_factory.mktemp("watched")
    config, layout = write_config(folder), RunLayout(str(folder / "run"))
    seen = _Watched(folder / "run", [], [], [], [], [])
    build_train_loader, validate = engine_round.build_train_loader, evaluator.validate

    def watched_loader(*arguments: Any, **options: Any) -> Any:
        seen.images.append([])
        seen.pasted.append(set())
        for batch in build_train_loader(*arguments, **options):
            seen.images[-1].extend(batch)
            places = [info.pool_index for image in batch for info in image["paste_info"]]
            seen.pasted[-1].update(map(options["pool"].instance, places))
            yield batch

    def watched_validate(cfg: Any, model: torch.nn.Module, *arguments: Any, **context: Any) -> Any:
        seen.evaluated.append((context["checkpoint"], model, weights_of(model)))
        return validate(cfg, model, *arguments, **context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_round, "build_train_loader", watched_loader)
        patch.setattr(evaluator, "validate", watched_validate)
        patch.setattr(Ranks, "barrier", lambda ranks: seen.told.append(told_of(layout)))
        patch.setattr(Ranks, "share", lambda ranks, tensors: seen.shared.append(tensors))
        pasting = ("INPUT.USE_COPY_METHOD", "syn_copy", "INPUT.INST_POOL_FEED", "True")
        settings = (*pasting, "FEEDBACK.FROM_ROUND", "1", "FEEDBACK.STALENESS", "0")
        for round_ in range(2):
            with pytest.raises(UserError, match=f"for the pool of round {round_} .*/rd0{round_}.done"):
                call(config, *settings, "FEEDBACK.TIMEOUT", "0")
            write_pool(layout, round_)
            picture = files.join(layout.pictures_dir, f"allocation_rd0{round_}.png")
            files.write_bytes(picture, encode_png(np.zeros((4, 5 + round_, 3), np.uint8)))
            call(config, *settings)
            told = read_feedback(layout.feedback_history(round_))
            write_feedback(layout, dataclasses.replace(told, box_ap=[0.0, 50.0, 100.0]))
    return seen


def test_a_round_pastes_the_whole_pool_up_to_its_own_instances(watched: _Watched) -> None:
    for round_, pasted in enumerate(watched.pasted):
        assert pasted == {
            RunLayout.instance_name(made, c, 0) for made in range(round_ + 1) for c in (2, 5, 9)
        }


def test_it_is_told_how_long_each_round_waited_trained_and_was_evaluated(watched: _Watched) -> None:
    works = {"waiting (stage 3)", "training", "evaluating"}
    spent = {round_: set(of_round) for round_, of_round in read_seconds(RunLayout(str(watched.run))).items()}
    assert spent == {-1: {"evaluating"}, 0: works, 1: works}


def test_tensorboard_shows_how_the_images_of_each_round_were_divided(watched: _Watched) -> None:
    events = EventAccumulator(str(watched.run / "train/tensorboard")).Reload()
    shown = [(event.step, event.width) for event in events.Images("allocation")]
    assert shown == [(0, 5), (3, 6)]  # at the first iteration of each


def test_objects_have_the_sizes_that_the_feedback_of_the_round_before_asks_for(watched: _Watched) -> None:
    sides: list[list[list[float]]] = [[[], [], []], [[], [], []]]
    for round_, images in enumerate(watched.images):
        for image in images:
            for info in image["paste_info"]:
                x1, y1, x2, y2 = info.box
                share = ((x2 - x1) * (y2 - y1) / (image["height"] * image["width"])) ** 0.5
                sides[round_][info.class_index].append(share)
    assert all(0.2 < share < 0.5 for of_class in sides[0] for share in of_class)
    assert min(sides[1][0]) > 0.46  # AP 0: sixteen times the mean of 0.36, which the limit of 0.5 stops
    assert all(0.2 < share < 0.5 for share in sides[1][1])  # the mean AP
    assert max(sides[1][2]) < 0.24  # AP 100: a sixteenth, stopped by the limit of 10 pixels


@pytest.mark.parametrize(("staleness", "source"), [("0", 1), ("1", 0)])
def test_object_sizes_follow_the_feedback_that_the_images_of_the_round_were_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staleness: str, source: int
) -> None:
    config, layout, loader = write_config(tmp_path), RunLayout(str(tmp_path / "run")), Mock()
    for path in (layout.annotations_done(2), *(layout.feedback_history(round_) for round_ in (-1, 0, 1))):
        files.write_bytes(path, b"")
    monkeypatch.setattr(engine_round, "build_train_loader", loader)
    monkeypatch.setattr(engine_round, "build_pool", Mock())
    monkeypatch.setattr(engine_round, "read_feedback", str)
    cfg = load_config(str(config), ["FEEDBACK.STALENESS", staleness])
    ranks, engine = Ranks(0, 1, torch.device("cpu")), Engine(Mock(), Mock())
    TrainingRun(cfg, layout, ranks, engine, read_training_set(cfg))._train(2, end=9)
    assert loader.call_args.kwargs["feedback"] == layout.feedback_history(source)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_network_lies_in_memory_as_the_settings_say(tmp_path: Path, channels_last: bool) -> None:
    cfg = load_config(str(write_config(tmp_path)), ["SOLVER.CHANNELS_LAST", str(channels_last)])
    ranks, layout = Ranks(0, 1, torch.device("cpu")), RunLayout(str(tmp_path / "run"))
    run = TrainingRun(cfg, layout, ranks, Engine(Mock(), Mock()), read_training_set(cfg))
    kernels = [p for p in run._state.model.parameters() if p.dim() == 4 and min(p.shape[1:3]) > 1]
    assert kernels
    assert {p.is_contiguous(memory_format=torch.channels_last) for p in kernels} == {channels_last}


class _WithoutTheOthers(Ranks):
    """A process of several that waits for nobody and gets nothing from the others."""

    def barrier(self) -> None:
        return

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        return


def test_each_process_trains_on_its_part_of_the_batches_up_to_each_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config(str(write_config(tmp_path)), ["TEST.EVAL_PERIOD", "4"])
    monkeypatch.setattr(engine_round, "build_train_loader", loader := Mock())
    monkeypatch.setattr(engine_round, "build_pool", pool := Mock())
    ranks = _WithoutTheOthers(1, 2, torch.device("cpu"))
    engine = Engine(Mock(), Mock(return_value=None))  # scores are the first process's
    run = TrainingRun(cfg, RunLayout(str(tmp_path / "run")), ranks, engine, read_training_set(cfg))
    engine.train.side_effect = lambda cfg, state, loader, stop, **_: setattr(state, "iteration", stop)
    run._train(1, end=6)
    parts = ("start_iteration", "num_iterations", "rank", "world_size")
    told = [tuple(of.kwargs[name] for name in parts) for of in loader.call_args_list]
    assert told == [(0, 4, 1, 2), (4, 2, 1, 2)]
    assert pool.call_args.args[2] == 1 and loader.call_args.kwargs["pool"] is pool.return_value
    for of in engine.train.call_args_list:
        assert (of.kwargs["end"], of.kwargs["title"], of.kwargs["ranks"]) == (6, "round 1", ranks)


def test_no_process_goes_on_before_the_feedback_of_the_round_is_there(watched: _Watched) -> None:
    assert [-1] in watched.told and [-1, 0] in watched.told and watched.told[-1] == [-1, 0, 1]


def test_the_average_weights_are_evaluated_the_same_in_every_process(watched: _Watched) -> None:
    assert len(watched.evaluated) == 3  # the starting weights, too
    for (path, model, weights), shared in zip(watched.evaluated, watched.shared, strict=True):
        checkpoint = torch.load(path, weights_only=True)
        assert_equal_weights(weights, checkpoint["model_ema"])
        assert list(map(id, shared)) == list(map(id, (*model.parameters(), *model.buffers())))
    assert not torch.equal(weights[LAST_CLASSIFIER], checkpoint["model"][LAST_CLASSIFIER])


def test_the_federated_loss_knows_how_many_training_images_show_each_class(watched: _Watched) -> None:
    content = json.loads((watched.run.parent / "small_train/annotations.json").read_text())
    shown = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    counts = [sum(category == shows for _, shows in shown) for category in (2, 5, 9)]
    assert len(set(counts)) > 1
    _, model, _ = watched.evaluated[0]
    for predictor in model.roi_heads.box_predictor:
        assert predictor.freq_weight.tolist() == pytest.approx([count**0.5 for count in counts])
