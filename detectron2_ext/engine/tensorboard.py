"""What TensorBoard shows of a training: ``train/tensorboard`` in the run folder, beside ``metrics.json``."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image

from detectron2_ext.data.loader import Batch, is_bgr
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.evaluation.scoring import Evaluation
from exchange import files
from exchange.layout import RunLayout

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_IMAGES = 8
_ABOUT_TIME = ("time", "data_time", "images_per_second", "eta_seconds", "memory_mib")


@contextmanager
def open_board(cfg: CfgNode, folder: str, iteration: int, ranks: Ranks) -> Iterator[SummaryWriter | None]:
    """A writer to ``folder/tensorboard``; what a killed call left there beyond ``iteration`` is not shown.

    None without ``SOLVER.TENSORBOARD``, where TensorBoard is not installed, in a bucket, and in all processes but the
    first.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if not (cfg.SOLVER.TENSORBOARD and installed and ranks.is_first) or "://" in folder:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter  # only now: seconds

    with SummaryWriter(files.join(folder, "tensorboard"), purge_step=iteration + 1) as writer:
        yield writer


def add_metrics(board: SummaryWriter, iteration: int, values: Mapping[str, float]) -> None:
    """A line of ``metrics.json``: losses, learning rate, and what tells of speed and memory."""
    for name, value in values.items():
        kind = "speed" if name in _ABOUT_TIME else "training"
        board.add_scalar(f"{kind}/{name}", value, iteration)


def add_scores(board: SummaryWriter, iteration: int, name: str, evaluation: Evaluation) -> None:
    """The scores on the data set ``name`` in percent, of boxes and masks."""
    for kind, summary in (("box", evaluation.box), ("mask", evaluation.mask)):
        for metric, value in summary.items():
            if value is not None:
                board.add_scalar(f"{name}/{kind}_{metric}", value, iteration)


def add_allocation(board: SummaryWriter, iteration: int, layout: RunLayout, round_: int) -> None:
    """The picture of how a round's images were divided among the classes, if stage 1 drew one."""
    path = files.join(layout.pictures_dir, f"allocation_rd{round_:02}.png")
    if files.exists(path):
        with Image.open(io.BytesIO(files.read_bytes(path))) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        board.add_image("allocation", pixels, iteration, dataformats="HWC")


def shown(
    batches: Iterable[Batch], board: SummaryWriter | None, state: TrainingState, cfg: CfgNode
) -> Iterator[Batch]:
    """``batches``, the first of which the board shows: each object's box with its class, and whether it was pasted."""
    for number, batch in enumerate(batches):
        if board and number == 0:
            for place, record in enumerate(batch[:_IMAGES]):
                objects = record["instances"]
                names = [str(state.categories[index]["name"]) for index in objects.gt_classes.tolist()]
                pasted = objects.instance_source.tolist()
                board.add_image_with_boxes(
                    f"training/{place}",
                    record["image"].flip(0) if is_bgr(cfg) else record["image"],
                    objects.gt_boxes,
                    state.iteration,
                    labels=[
                        f"{name}, pasted" if new else name for name, new in zip(names, pasted, strict=True)
                    ],
                )
        yield batch
