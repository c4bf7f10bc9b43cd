"""Trains the small foreground model; its code and configuration lie beside its weights, as BiRefNet's do."""

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageSegmentation, PreTrainedModel

from diSegmenter.annotate import MaskCleaner
from exchange import files
from tools.digits import pictures, samples
from tools.digits.optimise import optimising

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 16


def make_pictures(part: samples.Samples, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Normalised pictures (count, 3, 64, 64) and the digits' coverage (count, 1, 64, 64) in [0, 1]."""
    drawn = list(pictures.with_masks(part, count, np.random.default_rng(seed)))
    pixels = (
        torch.from_numpy(np.stack([picture for picture, _, _ in drawn])).permute(0, 3, 1, 2).float() / 255
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (pixels - mean) / std, torch.from_numpy(np.stack([coverage for _, coverage, _ in drawn]))[:, None]


def train(folder: str, steps: int, seed: int) -> PreTrainedModel:
    """Trains the architecture that ``folder`` describes, with binary cross entropy against the coverage."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageSegmentation.from_config(config, trust_remote_code=True)
    images, coverages = make_pictures(samples.split()["generation"], 12_000, seed)
    model.train()
    for step in optimising([*model.parameters()], steps, 3e-3, 1e-4, "foreground"):
        batch = torch.randint(len(images), (_BATCH,))
        step(F.binary_cross_entropy_with_logits(model(images[batch])[-1], coverages[batch]))
    return model.eval()


def save(model: PreTrainedModel, folder: str) -> None:
    """Writes the weights beside code and configuration, in half precision."""
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, files.join(folder, "model.safetensors"), metadata={"format": "pt"})


@torch.no_grad()
def measure(model: PreTrainedModel) -> dict[str, float]:
    """Mean IoU of the masks at one half, on digits that no model was trained on; of those that stage 2 makes of them,
    too: as MRCA's release does, and cleaned (configs/Cleaned-masks.yaml)."""
    images, coverages = make_pictures(samples.split()["val"], 600, seed=1)
    alphas = torch.cat([model(chunk)[-1] for chunk in images.split(50)]).sigmoid()[:, 0].numpy()
    wanted = coverages[:, 0].numpy() > 0.5
    bytes_ = (alphas * 255).astype(np.uint8)

    def overlap(masks: np.ndarray) -> np.ndarray:
        return (masks & wanted).sum((1, 2)) / (masks | wanted).sum((1, 2))

    def overlap_of_stage_2(cleaner: MaskCleaner) -> float:
        return float(overlap(np.stack([cleaner(alpha)[0] > 0 for alpha in bytes_])).mean())

    at_half = overlap(alphas > 0.5)
    return {
        "mean_iou": float(at_half.mean()),
        "iou_5_percent_quantile": float(np.quantile(at_half, 0.05)),
        "mean_iou_as_released": overlap_of_stage_2(MaskCleaner(0, largest_component=False)),
        "mean_iou_cleaned": overlap_of_stage_2(MaskCleaner(128, largest_component=True)),
    }
