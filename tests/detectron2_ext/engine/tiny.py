"""A network and a data set of nothing but a few numbers, with the calling convention of the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from detectron2_ext.distributed import Ranks
from exchange.config import REPOSITORY, load_config

ALONE = Ranks(0, 1, torch.device("cpu"))


class TinyNet(nn.Module):
    """Two losses of a regression, disturbed by what the iteration draws; a buffer of each kind."""

    def __init__(self, num_classes: int = 3, noise: float = 0.1) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 6)
        self.head = nn.Linear(6, 1)
        classifier = nn.ModuleDict({"cls_score": nn.Linear(6, num_classes + 1)})
        self.roi_heads = nn.ModuleDict({"box_predictor": nn.ModuleList([classifier])})
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self._noise = noise

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = torch.stack([record["image"] for record in batch])
        targets = torch.stack([record["target"] for record in batch])
        hidden = torch.tanh(self.backbone(inputs))
        if self._noise:
            hidden = hidden + self._noise * torch.randn_like(hidden)
        if self.training:
            self.running.mul_(0.5).add_(inputs.detach().mean())
            self.calls.add_(1)
        scores = self.roi_heads["box_predictor"][0]["cls_score"](hidden)
        return {
            "loss_value": (self.head(hidden).squeeze(1) - targets).square().mean(),
            "loss_cls": scores.square().mean(),
        }


class TinyLoader:
    """Batches that depend on the number of the iteration; rank ``r`` of ``w`` has every ``w``-th record."""

    def __init__(
        self, start: int, stop: int, batch_size: int = 4, rank: int = 0, world_size: int = 1
    ) -> None:
        self._range = range(start, stop)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for iteration in self._range:
            draw = torch.Generator().manual_seed(iteration)
            records = [
                {
                    "image": torch.randn(4, generator=draw),
                    "target": torch.randn((), generator=draw),
                    "file_name": f"images/{iteration}_{i}.png",
                    "image_id": iteration * self._batch_size + i,
                }
                for i in range(self._batch_size)
            ]
            yield records[self._rank :: self._world_size]

    def __len__(self) -> int:
        return len(self._range)


def tiny_config(*overrides: str, path: str = "") -> CfgNode:
    """The defaults, with the overrides; without a YAML of its own an empty one is taken."""
    empty = REPOSITORY / "tests/detectron2_ext/engine/empty.yaml"
    return load_config(path or str(empty), overrides)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in the network."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
