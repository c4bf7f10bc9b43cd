"""One training step of the ResNet-50 configuration against the original network in Detectron2's trainer.

1,203 classes, images of 640 x 640 with 10 objects each, as many as fit beside other work. Both sides have the same
weights, get the same batch and do the same: forward, backward, clipping by value, AdamW; neither keeps an average.

The original network (CenterNet2 as in Detic, X-Paste and MRCA) is no part of this project. MRCA_ORIGINAL_NETWORK
names a Python file of yours whose ``build_network(num_classes, class_image_counts)`` returns it, on the CPU, with
Detectron2's calling convention and the names of its parameters (it has to take this project's CustomRCNN out of
Detectron2's registry before its own can enter). Loading this project's weights into it, strictly, and
comparing the losses of the first step shows that it is the same network.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.loop import TrainingStep
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling import build_model
from detectron2_ext.structures import BitMasks, Instances
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError
from tools.benchmarks import times_faster

TARGETS = {"cpu": 1.3, "cuda": 2.0}
_CLASSES, _SIZE, _OBJECTS = 1203, 640, 10
_BATCH = {"cpu": 2, "cuda": 16}
_TURNS = {"cpu": 3, "cuda": 20}
_PROFILE_ROWS = 14
_NETWORK = "MRCA_ORIGINAL_NETWORK"

Step = Callable[[], dict[str, Tensor]]


def measure(device: str) -> dict[str, Any]:
    """Seconds of a step, medians of turns taken alternately after one that warms up."""
    build_original = _original_network()
    cfg, counts, network = _own_network(device)
    original = build_original(_CLASSES, counts)
    original.load_state_dict(network.state_dict())
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    for name, parameter in original.named_parameters():
        parameter.requires_grad_(name in learning)  # Detectron2's clipping fails where a gradient stays away
    batch = [noise_image(seed) for seed in range(_BATCH[device])]
    sides = {
        "ours": _own_step(cfg, network, batch, device),
        "other": _detectron2_step(cfg, original.to(device), batch, device),
    }
    first = {name: seeded(step) for name, step in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_TURNS[device]):
        for name, step in sides.items():
            seconds[name].append(timed(step, device))
    own, other = (statistics.median(seconds[name]) for name in sides)
    return {
        "ours": own,
        "other": other,
        "unit": f"seconds per step of {len(batch)} images",
        **times_faster(own, other, TARGETS[device]),
        "images_per_second": len(batch) / own,
        "largest_relative_loss_difference": max(
            abs(float(first["ours"][name]) / float(loss) - 1) for name, loss in first["other"].items()
        ),
    }


def profile(device: str) -> str:
    """Share of a step's own time, by operator, and its parts; of this project's side alone."""
    cfg, _, network = _own_network(device)
    step = _own_step(cfg, network, [noise_image(seed) for seed in range(_BATCH[device])], device)
    timed(step, device)
    with torch.profiler.profile() as profiler:
        timed(step, device)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    seconds = {event.key: getattr(event, key) / 1e6 for event in profiler.key_averages()}
    total = sum(seconds.values())
    rows = sorted(seconds.items(), key=lambda item: -item[1])[:_PROFILE_ROWS]
    table = [[name, spent, 100 * spent / total] for name, spent in (*rows, ("all", total))]
    return tabulate(table, ["operator", "seconds", "%"], tablefmt="github", floatfmt=("", ".3f", ".1f"))


def _own_network(device: str) -> tuple[CfgNode, list[int], nn.Module]:
    """The configuration, the images of each class, and the network with random weights."""
    overrides = ["MODEL.DEVICE", device, "SOLVER.MODEL_EMA", "0.0", "SOLVER.CHANNELS_LAST", "True"]
    if device == "cuda":
        overrides += ["SOLVER.AMP.ENABLED", "True"]
    cfg = load_config(str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), overrides)
    counts = (1 + 2000 / np.arange(1, _CLASSES + 1)).astype(int).tolist()
    torch.manual_seed(0)
    return cfg, counts, build_model(cfg, counts).to(device)


def _original_network() -> Callable[[int, list[int]], nn.Module]:
    if importlib.util.find_spec("detectron2") is None:
        raise UserError(
            "train_step compares with Detectron2, which is not installed here: see "
            "detectron2_ext/requirements-detectron2.txt"
        )
    path = os.environ.get(_NETWORK, "")
    if not os.path.isfile(path):
        raise UserError(
            f"train_step compares with the original network, which is no part of this project: set {_NETWORK} to a "
            "Python file with build_network(num_classes, class_image_counts) that returns it"
        )
    spec = importlib.util.spec_from_file_location("original_network", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build: Callable[[int, list[int]], nn.Module] = module.build_network
    return build


def _own_step(cfg: CfgNode, network: nn.Module, batch: list[dict[str, Any]], device: str) -> Step:
    network = network.to(memory_format=torch.channels_last).train()
    step = TrainingStep.from_config(TrainingState.start(network, cfg), Ranks(0, 1, torch.device(device)), cfg)
    return lambda: step(batch)


def _detectron2_step(cfg: CfgNode, network: nn.Module, batch: list[dict[str, Any]], device: str) -> Step:
    """Its trainer's step, with its clipping around the same optimiser."""
    from detectron2.engine import AMPTrainer, SimpleTrainer
    from detectron2.solver.build import maybe_add_gradient_clipping
    from detectron2.utils.events import EventStorage

    from detectron2_ext.with_detectron2.registration import detectron2_config

    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = maybe_add_gradient_clipping(detectron2_config(cfg), torch.optim.AdamW)(
        learning, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    inputs = [as_detectron2(record) for record in batch]
    kind = AMPTrainer if device == "cuda" else SimpleTrainer
    trainer = kind(network, iter(lambda: inputs, None), optimizer)

    def step() -> dict[str, Tensor]:
        with EventStorage(0) as storage:
            trainer.run_step()
            return {name: value for name, (value, _) in storage.latest().items() if name.startswith("loss")}

    return step


def seeded(step: Step) -> dict[str, Tensor]:
    """The losses of a step that draws the same boxes every time."""
    torch.manual_seed(1)
    return step()


def timed(step: Step, device: str) -> float:
    """Seconds of a step."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    seeded(step)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def noise_image(seed: int, side: int = _SIZE) -> dict[str, Any]:
    """Noise with ellipses, in this project's format."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(torch.rand(_OBJECTS, 2, generator=generator) * 2.5) * side / 27
    corner = torch.rand(_OBJECTS, 2, generator=generator) * (side - size)
    boxes = torch.cat([corner, corner + size], dim=1)
    center, radius = (corner + size / 2)[:, :, None, None], (size / 2)[:, :, None, None]
    pixels = torch.arange(side) + 0.5
    distance = ((pixels[None, None] - center[:, 0]) / radius[:, 0]) ** 2
    masks = distance + ((pixels[None, :, None] - center[:, 1]) / radius[:, 1]) ** 2 <= 1
    instances = Instances(
        (side, side),
        gt_boxes=boxes,
        gt_classes=torch.randint(0, _CLASSES, (_OBJECTS,), generator=generator),
        gt_masks=BitMasks.from_full(masks),
    )
    image = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": side, "width": side, "file_name": f"{seed}", "instances": instances}


def as_detectron2(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its annotated objects as Detectron2 has them."""
    from detectron2 import structures

    ours = record["instances"]
    instances = structures.Instances(ours.image_size)
    instances.gt_boxes = structures.Boxes(ours.gt_boxes)
    instances.gt_classes = ours.gt_classes
    instances.gt_masks = structures.BitMasks(ours.gt_masks.to_full())
    return {**record, "instances": instances}
