"""What TensorBoard shows, as its own reader reads it."""

from __future__ import annotations

import io
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine import tensorboard
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.tensorboard import add_allocation, add_metrics, add_scores, open_board, shown
from detectron2_ext.evaluation.scoring import Evaluation
from detectron2_ext.structures import Instances
from exchange.layout import RunLayout
from tests.detectron2_ext.engine.tiny import ALONE, TinyNet, tiny_config

CFG = tiny_config()
CATEGORIES = [{"id": 2, "name": "red"}, {"id": 5, "name": "grün"}]


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()


def picture(events: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = events.Images(tag)
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_metrics_and_scores_stand_at_their_iterations_and_what_is_unknown_at_none(tmp_path: Path) -> None:
    with open_board(CFG, str(tmp_path), 0, ALONE) as board:
        add_metrics(board, 20, {"total_loss": 1.5, "lr": 0.25, "memory_mib": 3.0})
        add_scores(board, 30, "val", Evaluation({"AP": 12.5}, {"AP": 11.5, "AP50": 0.0, "APr": None}, [], []))
    events = read(tmp_path)
    values = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert values == {
        "training/total_loss": [(20, 1.5)],
        "training/lr": [(20, 0.25)],
        "speed/memory_mib": [(20, 3.0)],
        "val/box_AP": [(30, 12.5)],
        "val/mask_AP": [(30, 11.5)],
        "val/mask_AP50": [(30, 0.0)],
    }


def test_a_resumed_training_replaces_what_a_killed_one_had_shown_beyond_its_checkpoint(
    tmp_path: Path,
) -> None:
    for start, loss in ((0, 1.0), (2, 9.0)):
        for earlier in (tmp_path / "tensorboard").glob("*"):  # files are read by the second in their names
            earlier.rename(earlier.with_name("events.out.tfevents.0"))
        with open_board(CFG, str(tmp_path), start, ALONE) as board:
            for iteration in range(start + 1, 5):
                add_metrics(board, iteration, {"total_loss": loss})
    shown_ = [(e.step, e.value) for e in read(tmp_path).Scalars("training/total_loss")]
    assert shown_ == [(1, 1.0), (2, 1.0), (3, 9.0), (4, 9.0)]


@pytest.mark.parametrize("bgr", [False, True])
def test_the_first_batch_is_shown_with_its_boxes_and_passed_on_with_the_others(
    tmp_path: Path, bgr: bool
) -> None:
    cfg = tiny_config("INPUT.FORMAT", "BGR" if bgr else "RGB")
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[2 if bgr else 0] = 200  # red
    objects = Instances(
        (40, 60),
        gt_boxes=torch.tensor([[2.0, 20.0, 50.0, 38.0]]),
        gt_classes=torch.tensor([1]),
        instance_source=torch.tensor([1]),
    )
    batches = [[{"image": image, "instances": objects}] * images for images in (9, 1)]
    state = TrainingState.start(TinyNet(), cfg, CATEGORIES)
    state.iteration = 7
    with open_board(cfg, str(tmp_path), 7, ALONE) as board:
        assert list(shown(batches, board, state, cfg)) == batches
    events = read(tmp_path)
    assert sorted(events.Tags()["images"]) == [f"training/{place}" for place in range(8)]
    pixels = picture(events, "training/0")
    assert pixels.shape == (40, 60, 3) and pixels[10, 55].tolist() == [200, 0, 0]
    assert pixels[38, 10].tolist() == [255, 0, 0]  # the box's lower edge
    assert events.Images("training/0")[0].step == 7
    for pasted, said in ((1, "grün, pasted"), (0, "grün")):
        objects.instance_source[:] = pasted
        list(shown(batches, drawn := Mock(), state, cfg))
        assert [call.kwargs["labels"] for call in drawn.add_image_with_boxes.call_args_list] == [[said]] * 8


def test_the_allocation_is_shown_where_stage_1_drew_it(tmp_path: Path) -> None:
    layout = RunLayout(str(tmp_path / "run"))
    Path(layout.pictures_dir).mkdir(parents=True)
    Image.new("RGB", (5, 4), (10, 20, 30)).save(Path(layout.pictures_dir) / "allocation_rd01.png")
    with open_board(CFG, str(tmp_path), 3, ALONE) as board:
        for round_ in (0, 1):
            add_allocation(board, round_, layout, round_)
    events = read(tmp_path)
    assert picture(events, "allocation").tolist() == np.full((4, 5, 3), (10, 20, 30)).tolist()
    assert [event.step for event in events.Images("allocation")] == [1]


def test_there_is_no_board_without_the_key_or_the_package_in_a_bucket_and_beyond_the_first_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off, second = tiny_config("SOLVER.TENSORBOARD", "False"), Ranks(1, 2, torch.device("cpu"))
    cases = [(off, tmp_path, ALONE), (CFG, "s3://bucket/run", ALONE), (CFG, tmp_path, second)]
    for cfg, folder, ranks in cases:
        with open_board(cfg, str(folder), 0, ranks) as board:
            assert board is None
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with open_board(CFG, str(tmp_path), 0, ALONE) as board:
        assert board is None
    assert not list(tmp_path.iterdir())
