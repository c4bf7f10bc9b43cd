"""One training step of a network in each form that hardware may like: images per second, memory, and the losses.

The headline is the fastest form against float32 as it comes; the target is for a GPU. ``losses``: the largest relative
difference of a first step's from those of float32 on the CPU, with the same weights, images and seed. On a GPU 1,203
classes at the configurations' own sizes, ResNet-50 and Swin-L; on a CPU the smallest network, which shows that each
form (but the compiled one) runs and what it does to the losses.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.loop import TrainingStep
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling import build_model
from exchange.config import REPOSITORY, load_config
from tools.benchmarks import times_faster
from tools.benchmarks.train_step import noise_image, seeded, timed

TARGET = 2.0
_CLASSES = 1203
_TURNS = 5
# Settings of each form; "compiled" has its backbone, the part whose shapes stay, through torch.compile.
FORMS: Mapping[str, Mapping[str, object]] = {
    "float32": {},
    "float32, channels last": {"SOLVER.CHANNELS_LAST": True},
    "bfloat16": {"SOLVER.AMP.ENABLED": True},
    "bfloat16, channels last": {"SOLVER.AMP.ENABLED": True, "SOLVER.CHANNELS_LAST": True},
    "bfloat16, channels last, compiled": {"SOLVER.AMP.ENABLED": True, "SOLVER.CHANNELS_LAST": True},
    "backbone in half precision, as released": {"FP16": True},
}


@dataclass(frozen=True)
class _Workload:
    """A configuration, and the images of a batch."""

    config: str
    batch: int
    size: int
    overrides: tuple[str, ...] = ()


_SMALL = ("MODEL.TIMM.BASE_NAME", "test_resnet", "MODEL.FPN.OUT_CHANNELS", "32")
_SMALL += ("MODEL.CENTERNET.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_BOX_HEAD.FC_DIM", "32")
_WORK = {
    "cpu": {"smallest network": _Workload("configs/MRCA/MRCA_R50.yaml", 2, 128, _SMALL)},
    "cuda": {
        "ResNet-50": _Workload("configs/MRCA/MRCA_R50.yaml", 16, 640),
        "Swin-L": _Workload("configs/MRCA/MRCA_SwinL.yaml", 2, 896),
    },
}


def measure(device: str) -> dict[str, Any]:
    """Medians of turns in which every form takes a step; of each network, and the first one's ratio."""
    found = {name: _forms(work, device) for name, work in _WORK[device].items()}
    first = next(iter(found.values()))
    best = max(first, key=lambda form: first[form]["images_per_second"])
    own, other = first[best]["images_per_second"], first["float32"]["images_per_second"]
    return {
        "ours": own,
        "other": other,
        "unit": "images per second",
        **times_faster(1 / own, 1 / other, TARGET),
        "fastest": best,
        "networks": found,
    }


def _forms(work: _Workload, device: str) -> dict[str, dict[str, float]]:
    batch = [noise_image(seed, work.size) for seed in range(work.batch)]
    reference = _Form(work, "float32", "cpu").first_losses(batch[:2])
    found: dict[str, dict[str, float]] = {}
    for name in (form for form in FORMS if device == "cuda" or not form.endswith("compiled")):
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        form = _Form(work, name, device)
        losses = form.first_losses(batch[:2])
        form.step(batch)  # warms up, and compiles
        seconds = statistics.median(timed(lambda form=form: form.step(batch), device) for _ in range(_TURNS))
        found[name] = {
            "images_per_second": len(batch) / seconds,
            "losses": max(abs(losses[key] / value - 1) for key, value in reference.items() if value),
        }
        if device == "cuda":
            found[name]["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


class _Form:
    """A network with weights of its own seed, and a step that it takes in one of the forms."""

    def __init__(self, work: _Workload, name: str, device: str) -> None:
        settings = {"MODEL.DEVICE": device, "SOLVER.MODEL_EMA": 0.0, "FP16": False, **FORMS[name]}
        overrides = [*work.overrides, *(text for item in settings.items() for text in map(str, item))]
        cfg = load_config(str(REPOSITORY / work.config), overrides)
        counts = (1 + 2000 / np.arange(1, _CLASSES + 1)).astype(int).tolist()
        torch.manual_seed(0)
        network: nn.Module = build_model(cfg, counts).to(device).train()
        if cfg.SOLVER.CHANNELS_LAST:
            network = network.to(memory_format=torch.channels_last)
        if name.endswith("compiled"):
            network.backbone.compile()
        ranks = Ranks(0, 1, torch.device(device))
        self.step = TrainingStep.from_config(TrainingState.start(network, cfg), ranks, cfg)

    def first_losses(self, batch: list[dict[str, Any]]) -> dict[str, float]:
        losses: dict[str, Tensor] = seeded(lambda: self.step(batch))
        return {name: float(loss) for name, loss in losses.items()}
