"""The training stage as a whole: rounds, feedback, resumption, evaluation, and its error messages."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine import round as engine_round
from detectron2_ext.engine.round import TrainingRun
from detectron2_ext.evaluation import evaluator
from detectron2_ext.modeling.described import read_described
from exchange import files
from exchange.catalog import read_training_set
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from exchange.feedback import read_feedback
from exchange.layout import RunLayout
from exchange.locks import only_one
from tests.detectron2_ext.engine.small_run import LAST_CLASSIFIER, call, write_config
from tests.detectron2_ext.engine.tiny import assert_equal_weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of which both rounds are done; the last one is shorter."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder, MAX_ITER=5)
    call(config)
    assert sorted(p.name for p in (folder / "run/feedback").iterdir()) == ["rd00.json"]
    call(config)
    return folder


def test_each_call_finishes_one_round_and_tells_the_generator(finished: Path) -> None:
    run = finished / "run"
    for round_, iteration in ((0, 3), (1, 5)):
        feedback = read_feedback(str(run / f"feedback/rd{round_:02}.json"))
        assert (feedback.round, feedback.iteration, feedback.dataset) == (round_, iteration, "small_val")
        assert feedback.categories == [2, 5, 9]
        assert feedback.checkpoint == str(run / f"train/model_{iteration - 1:07}.pth")
        assert feedback.checkpoint_sha256 == files.sha256(feedback.checkpoint)
        assert [category.id for category in read_described(feedback.checkpoint).categories] == [2, 5, 9]
        assert all(value is not None and 0 <= value <= 100 for value in feedback.box_ap + feedback.mask_ap)
    assert (run / "feedback.json").read_bytes() == (run / "feedback/rd01.json").read_bytes()
    assert (run / "train/last_checkpoint").read_text() == "model_0000004.pth"


def test_drift_is_the_way_that_the_row_of_each_class_went_in_the_round(finished: Path) -> None:
    checkpoints = {
        name: torch.load(finished / f"run/train/{name}.pth", weights_only=True)["model_ema"]
        for name in ("model_initial", "model_0000002", "model_0000004")
    }
    for round_, before, now in ((0, "model_initial", "model_0000002"), (1, "model_0000002", "model_0000004")):
        rows = [checkpoints[name][LAST_CLASSIFIER].double().numpy() for name in (now, before)]
        assert rows[0].shape[0] == 4  # three classes, then the background
        expected = [float(((rows[0][c] - rows[1][c]) ** 2).sum() ** 0.5) for c in range(3)]
        feedback = read_feedback(str(finished / f"run/feedback/rd{round_:02}.json"))
        assert feedback.drift == pytest.approx(expected, rel=1e-9)
        assert len(set(feedback.drift)) == 3 and min(expected) > 0


def test_predictions_and_metrics_are_written_for_upload_and_for_programs(finished: Path) -> None:
    folder = finished / "run/train/inference/small_val"
    predictions = json.loads((folder / "lvis_instances_results.json").read_text())
    assert predictions
    assert set(predictions[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert predictions[0]["segmentation"]["size"] == [64, 64]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [c["name"] for c in metrics["classes"]] == ["red", "green", "blue"]
    assert metrics["iteration"] == 5
    kept = ["metrics_0000002.json", "metrics_0000004.json"]  # of each evaluation
    assert sorted(p.name for p in folder.iterdir()) == ["lvis_instances_results.json", "metrics.json", *kept]
    assert (folder / "metrics.json").read_bytes() == (folder / kept[1]).read_bytes()


def test_tensorboard_has_the_losses_of_metrics_json_and_the_scores_of_the_feedback(finished: Path) -> None:
    events = EventAccumulator(str(finished / "run/train/tensorboard")).Reload()
    lines = [json.loads(line) for line in (finished / "run/train/metrics.json").read_text().splitlines()]
    for tag, key in (("training/total_loss", "total_loss"), ("training/lr", "lr"), ("speed/time", "time")):
        told = [(event.step, event.value) for event in events.Scalars(tag)]
        assert told == [(line["iteration"], pytest.approx(line[key], rel=1e-6)) for line in lines]
    told = [(event.step, event.value) for event in events.Scalars("small_val/mask_AP")]
    feedbacks = [read_feedback(str(finished / f"run/feedback/rd0{round_}.json")) for round_ in (0, 1)]
    assert told == [(f.iteration, pytest.approx(f.mean_mask_ap, rel=1e-6)) for f in feedbacks]
    assert len(events.Images("training/0")) == 2  # a batch of each round


def test_a_call_after_the_last_round_changes_nothing(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in (finished / "run").rglob("*.*")
        if path.parent.name not in ("logs", "locks")
    }
    caplog.set_level("INFO")
    call(finished / "config.yaml")
    assert "all 5 iterations are done: nothing left to train" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_evaluation_alone_takes_the_last_checkpoint_and_trains_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(finished / "config.yaml", "--eval-only", "MODEL.META_ARCHITECTURE", "FeedbackRCNN")
    title, header, *rows, _, where = capsys.readouterr().out.splitlines()
    assert title.endswith("model_0000004.pth")
    assert header.split() == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    assert [row.split()[0] for row in rows] == ["box", "mask"] and where.endswith("inference/small_val")
    assert len({len(line) for line in (header, *rows)}) == 1
    weights = ("MODEL.WEIGHTS", str(finished / "run/train/model_initial.pth"))
    call(finished / "config.yaml", "--eval-only", "--resume", *weights)
    assert capsys.readouterr().out.splitlines()[0].endswith("model_0000004.pth")
    call(finished / "config.yaml", "--eval-only", *weights)
    assert "model_initial.pth" in capsys.readouterr().out
    call(finished / "config.yaml", "--eval-only", "MODEL.WEIGHTS", "")
    assert capsys.readouterr().out.splitlines()[0].endswith("model_0000004.pth")
    assert (finished / "run/train/last_checkpoint").read_text() == "model_0000004.pth"


@pytest.mark.parametrize("arguments", [(), ("--eval-only",)])
def test_a_run_is_evaluated_by_one_process_at_a_time_until_its_scores_are_written(
    arguments: tuple[str, ...], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = _copy(finished, tmp_path)
    (run / "feedback/rd01.json").unlink()

    def alone(function: Any) -> Mock:
        def checked(*args: Any, **options: Any) -> Any:
            with pytest.raises(UserError, match="is at 'evaluate' already"):
                with only_one(RunLayout(str(run)), "evaluate"):
                    pytest.fail("two at once")
            return function(*args, **options)

        return Mock(side_effect=checked)

    monkeypatch.setattr(evaluator, "validate", predicted := alone(evaluator.validate))
    monkeypatch.setattr(RunLayout, "scores", written := alone(RunLayout(str(run)).scores))
    call(config, *arguments)
    assert predicted.call_count == 1 and written.call_count == (0 if arguments else 1)


def _copy(finished: Path, folder: Path) -> tuple[Path, Path]:
    """Configuration and run folder of a copy of the finished run."""
    config, run = write_config(folder, MAX_ITER=5), folder / "run"
    shutil.copytree(finished / "run", run)
    (run / "run.yaml").write_text((run / "run.yaml").read_text().replace(str(finished), str(folder)))
    return config, run


@pytest.mark.parametrize("copied", [False, True])
def test_a_call_that_was_killed_while_evaluating_is_made_good(
    finished: Path, tmp_path: Path, copied: bool
) -> None:
    config, run = _copy(finished, tmp_path)
    expected = read_feedback(str(run / "feedback/rd01.json"))
    (run / "feedback/rd01.json").unlink()
    if not copied:
        shutil.copy(run / "feedback/rd00.json", run / "feedback.json")
    call(config)
    again = read_feedback(str(run / "feedback/rd01.json"))
    assert (again.round, again.mask_ap, again.drift) == (1, expected.mask_ap, expected.drift)
    assert read_feedback(str(run / "feedback.json")) == again


def test_starting_weights_are_evaluated_once_even_after_the_training(finished: Path, tmp_path: Path) -> None:
    config, run = _copy(finished, tmp_path)
    call(config, "--eval-initial")
    told = read_feedback(str(run / "feedback/initial.json"))
    assert (told.round, told.iteration, told.checkpoint) == (-1, 0, str(run / "train/model_initial.pth"))
    assert read_feedback(str(run / "feedback.json")).round == 1
    written = (run / "feedback/initial.json").stat().st_mtime_ns
    call(config, "--eval-initial")
    assert (run / "feedback/initial.json").stat().st_mtime_ns == written


_BOTH_SETS = ("DATASETS.TEST", "[small_val, small_train]")


def test_without_a_pool_of_its_own_one_call_trains_to_the_end_and_evaluates_on_its_way(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, rounds=False, CHECKPOINT_PERIOD=2, KEEP_CHECKPOINTS=9)
    call(config, *_BOTH_SETS, "TEST.EVAL_PERIOD", "4")
    train = tmp_path / "run/train"
    assert sorted(path.name for path in train.glob("*.pth")) == [
        *("model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "model_initial.pth")
    ]
    for name in ("small_val", "small_train"):
        for iteration in (4, 6):
            scores = json.loads((train / f"inference/{name}/metrics_{iteration - 1:07}.json").read_text())
            assert (scores["dataset"], scores["iteration"], scores["round"]) == (name, iteration, 0)
            assert scores["checkpoint"] == str(train / f"model_{iteration - 1:07}.pth")
    assert [path.name for path in (tmp_path / "run/feedback").iterdir()] == ["rd00.json"]
    told = read_feedback(str(tmp_path / "run/feedback.json"))
    assert (told.iteration, told.dataset) == (6, "small_val")
    lines = [json.loads(line) for line in (train / "metrics.json").open()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (
        lines[3]["eta_seconds"] > lines[5]["eta_seconds"] == 0
    )  # to the end of the round, not to the evaluation
    (train / "last_checkpoint").write_text("model_0000003.pth")  # by hand, to go on from there
    call(config, *_BOTH_SETS, "TEST.EVAL_PERIOD", "4")
    assert (train / "last_checkpoint").read_text() == "model_0000005.pth"


def test_an_evaluation_within_a_call_that_was_killed_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, rounds=False)
    evaluated: list[tuple[str, int]] = []
    validate = evaluator.validate

    def until_killed(cfg: Any, model: Any, name: str, *arguments: Any, **context: Any) -> Any:
        if len(evaluated) == 1:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return watched(cfg, model, name, *arguments, **context)

    def watched(cfg: Any, model: Any, name: str, *arguments: Any, **context: Any) -> Any:
        evaluated.append((name, context["iteration"]))
        scores = validate(cfg, model, name, *arguments, **context)
        return dataclasses.replace(scores, mask_ap=[float(len(name))] * 3)

    monkeypatch.setattr(evaluator, "validate", until_killed)
    with pytest.raises(KeyboardInterrupt):
        call(config, *_BOTH_SETS, "TEST.EVAL_PERIOD", "3")
    monkeypatch.setattr(evaluator, "validate", watched)
    call(config, *_BOTH_SETS, "TEST.EVAL_PERIOD", "3")
    assert evaluated == [(name, done) for done in (3, 6) for name in ("small_val", "small_train")]
    told = read_feedback(str(tmp_path / "run/feedback.json"))
    assert (told.dataset, told.mask_ap) == ("small_val", [float(len("small_val"))] * 3)


@pytest.mark.parametrize(
    ("iteration", "last", "told", "expected"),
    [
        (0, 6, [], (0, 3)),
        (0, 6, [0], (0, 3)),  # which another training left there
        (2, 6, [], (0, 3)),
        (3, 6, [], (0, 3)),
        (3, 6, [0], (1, 6)),
        (4, 6, [0], (1, 6)),
        (6, 6, [0], (1, 6)),
        (6, 6, [0, 1], None),
        (3, 5, [0], (1, 5)),
        (5, 5, [0], (1, 5)),
        (5, 5, [0, 1], None),
        (6, 9, [0, 1], (2, 9)),
        (2, 2, [], (0, 2)),
        (2, 2, [0], None),
    ],
)
def test_a_call_goes_on_with_the_first_round_that_lacks_iterations_or_feedback(
    iteration: int, last: int, told: list[int], expected: tuple[int, int] | None
) -> None:
    assert engine_round.unfinished_round(iteration, 3, last, told.__contains__) == expected


@pytest.mark.parametrize(
    ("start", "end", "period", "expected"),
    [
        (0, 9, 0, [9]),
        (0, 9, 4, [4, 8, 9]),
        (4, 8, 4, [8]),
        (5, 9, 2, [6, 8, 9]),
        (3, 5, 9, [5]),
        (0, 5, -1, [5]),
    ],
)
def test_a_stretch_ends_where_an_evaluation_is_due(
    start: int, end: int, period: int, expected: list[int]
) -> None:
    assert engine_round.stops(start, end, period) == expected


def test_several_training_sets_are_trained_on_as_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, rounds=False)
    cfg = load_config(str(config), ["DATASETS.TRAIN", "[small_train, small_val]"])
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = TrainingRun(cfg, RunLayout(str(tmp_path / "run")), ranks, Mock(), read_training_set(cfg))
    contents = [json.loads((tmp_path / f"{n}/annotations.json").read_text()) for n in cfg.DATASETS.TRAIN]
    shown = [{(n, a["image_id"], a["category_id"]) for a in c["annotations"]} for n, c in enumerate(contents)]
    counts = [sum(category == c for _, _, c in set.union(*shown)) for category in (2, 5, 9)]
    weights = run._state.model.roi_heads.box_predictor[0].freq_weight
    assert weights.tolist() == pytest.approx([count**0.5 for count in counts])
    assert len(run._dataset) == sum(len(content["images"]) for content in contents)


def test_random_starting_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    cfg, ranks = load_config(str(write_config(tmp_path))), Ranks(0, 1, torch.device("cpu"))
    starts = []
    for name in ("one", "other"):
        run = TrainingRun(cfg, RunLayout(str(tmp_path / name)), ranks, Mock(), read_training_set(cfg))
        starts.append(run._state.model.state_dict())  # the second after what the first has drawn
    assert_equal_weights(*starts)


def test_starting_weights_are_evaluated_before_round_0_if_a_pool_is_pasted(
    finished: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    pasting = ("INPUT.USE_COPY_METHOD", "syn_copy", "INPUT.INST_POOL_FEED", "True", "FEEDBACK.TIMEOUT", "0")
    with pytest.raises(
        UserError, match=r"waited 0 s .* for the pool of round 0 .*pool/annotations/rd00\.done"
    ):
        call(config, *pasting, "SEED", "1")
    feedback = read_feedback(str(tmp_path / "run/feedback/initial.json"))
    assert (feedback.round, feedback.iteration, feedback.drift) == (-1, 0, [None] * 3)
    assert feedback.checkpoint == str(tmp_path / "run/train/model_initial.pth")
    assert (tmp_path / "run/feedback.json").read_bytes() == (
        tmp_path / "run/feedback/initial.json"
    ).read_bytes()
    assert not (tmp_path / "run/train/metrics.json").exists()
    start, other = (
        torch.load(folder / "run/train/model_initial.pth", weights_only=True)["model"]
        for folder in (tmp_path, finished)
    )
    assert not torch.equal(start[LAST_CLASSIFIER], other[LAST_CLASSIFIER])  # which the seed decides


def test_the_starting_weights_are_the_averaged_ones_of_model_weights(finished: Path, tmp_path: Path) -> None:
    baseline = finished / "run/train/model_0000004.pth"
    call(write_config(tmp_path), "--eval-initial", "MODEL.WEIGHTS", str(baseline))
    start = torch.load(tmp_path / "run/train/model_initial.pth", weights_only=True)
    averaged = torch.load(baseline, weights_only=True)["model_ema"]
    for part in ("model", "model_ema"):
        assert_equal_weights(start[part], averaged)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.ROI_HEADS.NUM_CLASSES", "4"), r"3 categories, but MODEL\.ROI_HEADS\.NUM_CLASSES is 4"),
        (("MODEL.WEIGHTS", "/nowhere/model.pth"), r"/nowhere/model\.pth"),
        (("DATASETS.TEST", "[small_val, small_vla]"), r"no data set 'small_vla'"),
        (("DATASETS.TEST", "[]"), r"DATASETS\.TEST names no data set"),
        (("DATASETS.TRAIN", "[]"), r"DATASETS\.TRAIN names no data set"),
        (("SOLVER.AMP.DTYPE", "float8", "SOLVER.AMP.ENABLED", "True"), r"SOLVER\.AMP\.DTYPE is 'float8'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_trained(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        call(write_config(tmp_path), *overrides)
    assert not (tmp_path / "run/train/metrics.json").exists()


def test_a_training_set_without_boxes_is_named_before_anything_is_saved(tmp_path: Path) -> None:
    config, path = write_config(tmp_path), tmp_path / "small_train/annotations.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["bbox"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 1 has no 'bbox'"):
        call(config)
    assert not (tmp_path / "run/train/model_initial.pth").exists()


def test_a_test_set_with_other_names_is_refused_before_anything_is_saved(tmp_path: Path) -> None:
    config, path = write_config(tmp_path), tmp_path / "small_val/annotations.json"
    path.write_text(path.read_text().replace('"red"', '"rot"'))
    with pytest.raises(UserError, match=r"categories of .*val.*\.json are not those of .*train.*\.json"):
        call(config)
    assert not (tmp_path / "run/train/model_initial.pth").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("IMS_PER_BATCH", "0"), ("ACCUMULATION_STEPS", "0"), ("MODEL_EMA", "1.0"), ("MODEL_EMA", "-0.1")],
)
def test_an_impossible_number_is_refused_at_the_start(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"SOLVER\.{key} is {value}: it is "):
        call(write_config(tmp_path), f"SOLVER.{key}", value)
    assert not (tmp_path / "run/train").exists()


def test_nothing_to_evaluate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to evaluate"):
        call(write_config(tmp_path), "--eval-only")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_launch_reports_errors_in_one_line_with_code_2(processes: str, tmp_path: Path, python: str) -> None:
    environment = os.environ | {"MRCA_PYTHON": python, "PYTHON_EXEC": python, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(REPOSITORY / "launch.sh"), "--config", "nothing.yaml", "--num-gpus", processes]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: there is no configuration nothing.yaml")
