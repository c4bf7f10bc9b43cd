"""The configurations of the full-size networks, as they are shipped, on small images.

Their numbers are recorded in full_size_numbers.json, for weights and images that no generator of PyTorch's
draws: ``python tests/detectron2_ext/modeling/test_full_size_configs.py`` writes them anew. Do that only where
the network is meant to compute something else, and say so in the commit.
"""

import json
import math
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from network_scenes import CONFIGS, objects
from timm.layers import DropPath

from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.loop import TrainingStep
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.modeling import FeedbackNetwork, build_model
from exchange.config import load_config

RECORDED = Path(__file__).with_name("full_size_numbers.json")
OBJECTS = [
    ([[10.3, 12.6, 60.4, 70.7], [70.2, 5.4, 110.9, 40.1], [30.6, 50.3, 90.2, 90.8]], [30, 7, 600], (96, 128)),
    ([[20.7, 15.3, 70.4, 66.1]], [1200], (80, 104)),
]
MIDDLE_OF_BIASES = {"cls_score": -9.0, "agn_hm": -2.0, "centernet_head.bbox_pred": 3.0}
SPREAD_OF_WEIGHTS = {"cls_score": 2.0, "box_predictor.0.bbox_pred": 0.5, "box_predictor.1.bbox_pred": 0.5}


@torch.no_grad()
def fill_by_name(network):
    """Weights that depend on their names alone, such that scores, boxes and masks differ from place to place."""
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or "freq_weight" in name:
            continue
        random = np.random.RandomState(zlib.crc32(name.encode()))  # its numbers are promised never to change
        values = torch.from_numpy(random.random_sample(tuple(tensor.shape)) * 2 - 1)
        layer = next((part for part in (*MIDDLE_OF_BIASES, *SPREAD_OF_WEIGHTS) if part in name), None)
        if tensor.ndim > 1:
            tensor.copy_(values * SPREAD_OF_WEIGHTS.get(layer, 1.0) * math.sqrt(3 / tensor[0].numel()))
        elif name.endswith("bias") or name.endswith("running_mean"):
            tensor.copy_(MIDDLE_OF_BIASES.get(layer, 0.0) + 0.1 * values)
        else:
            tensor.copy_(1 + 0.1 * values)


def measure(backbone):
    """State after one step of MRCA's configuration, detections of two images, numbers by name."""
    fewer = ["TEST.DETECTIONS_PER_IMAGE", "20"]  # the masks of 300 take longer than all the rest
    exact = ["MODEL.DEVICE", "cpu", "FP16", "False"]
    cfg = load_config(str(CONFIGS / f"MRCA/MRCA_{backbone}.yaml"), [*exact, *fewer])
    image_counts = [int(index % 30 == 0) for index in range(1203)]  # so few that none is drawn
    network = build_model(cfg, image_counts).train()
    fill_by_name(network)
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    random = np.random.RandomState(0)
    pixels = [torch.from_numpy(random.randint(0, 256, (3, *size), dtype=np.uint8)) for *_, size in OBJECTS]
    batch = [
        {"image": image, "instances": objects(*of_image)}
        for image, of_image in zip(pixels, OBJECTS, strict=True)
    ]  # few enough boxes that all are sampled
    state = TrainingState.start(network, cfg)
    numbers = dict(TrainingStep.from_config(state, Ranks(0, 1, torch.device("cpu")), cfg)(batch))
    squares = defaultdict(float)
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            squares[".".join(name.split(".")[:2])] += parameter.grad.double().square().sum()
    numbers |= {f"gradient of {part}": square.sqrt() for part, square in squares.items()}
    evaluated = state.evaluated.eval()
    with torch.no_grad():
        outputs = evaluated([batch[0] | {"height": 192, "width": 256}, batch[1]])
        detections = [output["instances"] for output in outputs]
        whole = torch.stack([image[:, :80, :104] / 255 for image in pixels])
        numbers["logits"] = FeedbackNetwork(evaluated, "logits").eval()(whole)
        numbers["embedding"] = FeedbackNetwork(evaluated, "embedding").eval()(whole)
    assert numbers["logits"].shape == (2, 1204) and numbers["embedding"].shape == (2, 1024)
    numbers["logits"], numbers["embedding"] = numbers["logits"][:, 1::101], numbers["embedding"][:, ::50]
    for index, found in enumerate(detections):
        best = found[:5]
        numbers |= {
            f"{name} in image {index}": value for name, value in best.fields() if name != "pred_masks"
        }
        numbers[f"pixels in image {index}"] = best.pred_masks.sum((1, 2))
    listed = {name: value.flatten().tolist() for name, value in numbers.items()}
    return state, detections, {f"{backbone} {name}": values for name, values in listed.items()}


@pytest.fixture(scope="module", params=["R50", "SwinL"])
def measured(request):
    return measure(request.param)


def test_a_configuration_of_mrca_evaluates_with_masks_in_the_size_asked_for(measured):
    _, detections, _ = measured
    for found, size in zip(detections, [(192, 256), (80, 104)], strict=True):
        assert len(found) == 20
        assert found.pred_masks.shape == (len(found), *size)
        assert found.pred_boxes.isfinite().all() and found.scores.isfinite().all()


def test_losses_gradients_detections_and_feedback_are_those_recorded(measured):
    _, _, numbers = measured
    recorded = json.loads(RECORDED.read_text())
    backbone = next(iter(numbers)).split()[0]
    assert set(numbers) == {name for name in recorded if name.startswith(f"{backbone} ")}
    off = []
    for name, found in numbers.items():
        expected = np.array(recorded[name])
        allowed = 3 if "pixels" in name else 1e-4 * np.abs(expected).max()
        if len(found) != len(expected) or np.abs(found - expected).max() > allowed:
            off.append(f"{name}: {found}, recorded {recorded[name]}")
    assert not off, "\n".join(off)


if __name__ == "__main__":
    every = {name: values for backbone in ("R50", "SwinL") for name, values in measure(backbone)[2].items()}
    lines = [
        f"{json.dumps(name)}: {json.dumps([float(f'{value:.7g}') for value in values])}"
        for name, values in every.items()
    ]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
