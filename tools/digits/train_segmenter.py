"""Trains the baseline segmenter by the training stage itself and exports its averaged weights."""

import os
import sys

import torch
from safetensors.torch import save_file

from exchange import files, stopping
from exchange.config import REPOSITORY
from exchange.errors import UserError
from exchange.feedback import Feedback, read_feedback
from exchange.layout import RunLayout
from tools.digits.samples import category_name

CONFIG = "configs/digits/CenterNet2_digits.yaml"


def train(run: str, steps: int, seed: int) -> Feedback:
    """One round of ``launch.sh`` in the run folder ``run``, resumed if it was stopped; returns its evaluation."""
    settings = {"OUTPUT_DIR": run, "SEED": seed, "SOLVER.MAX_ITER": steps}
    overrides = [str(part) for pair in settings.items() for part in pair]
    environment = os.environ | {"MRCA_PYTHON": sys.executable}
    command = ["bash", str(REPOSITORY / "launch.sh"), "--config", str(REPOSITORY / CONFIG), *overrides]
    if stopping.run(command, env=environment):
        raise UserError(
            f"training the segmenter in {run} failed: mend what it says above, then start this again"
        )
    return read_feedback(RunLayout(run).feedback_file)


def export(feedback: Feedback, folder: str) -> None:
    """Writes the averaged weights in half precision as ``model.safetensors``."""
    weights = torch.load(feedback.checkpoint, map_location="cpu", weights_only=True)["model_ema"]
    halved = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    path = files.join(folder, "model.safetensors")
    save_file({name: weight.contiguous() for name, weight in halved.items()}, path)


def measured(feedback: Feedback) -> dict[str, float | None]:
    """Mask APs on the validation set, over all, by frequency and per class."""
    values = {
        "ap": feedback.mean_mask_ap,
        "ap_r": feedback.ap_r,
        "ap_c": feedback.ap_c,
        "ap_f": feedback.ap_f,
    }
    per_class = zip(feedback.categories, feedback.mask_ap, strict=True)
    return values | {f"ap of {category_name(category)}": ap for category, ap in per_class}
