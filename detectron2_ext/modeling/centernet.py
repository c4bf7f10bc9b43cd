"""CenterNet as a proposal generator (Zhou et al., Probabilistic two-stage detection, 2021): head, losses, proposals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms

from detectron2_ext.distributed import mean_over_ranks
from detectron2_ext.modeling.centernet_targets import CenterNetTargetAssigner, Locations
from detectron2_ext.modeling.roi_sampling import GroundTruth


class LevelScale(nn.Module):
    """One learned factor for the distances of one pyramid level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class CenterNetHead(nn.Module):
    """One tower for all levels that predicts the heat map of object centres and the box around each location.

    Args:
        channels: of the pyramid features and of the tower.
        num_levels: pyramid levels, each with a scale of its own.
        num_convs: 3x3 convolutions of the tower, each with GroupNorm (32 groups; narrower: 2 channels each)
            and ReLU.
        prior_prob: probability that the untrained heat map gives every location (Lin et al., 2017, section
            4.1).
    """

    def __init__(self, channels: int, num_levels: int, num_convs: int, prior_prob: float) -> None:
        super().__init__()
        groups = 32 if channels >= 64 and channels % 32 == 0 else channels // 2
        tower: list[nn.Module] = []
        for _ in range(num_convs):
            tower += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(groups, channels), nn.ReLU()]
        self.bbox_tower = nn.Sequential(*tower)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.agn_hm = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.bbox_pred.bias, 8.0)  # a box of 16 cells: overlaps its object from the start
        nn.init.constant_(self.agn_hm.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (B, C, H, W): heat map logits (B, 1, H, W) and distances to left, top, right, bottom
        (B, 4, H, W) >= 0 in units of the level's stride."""
        heat_logits, distances = [], []
        for feature, scale in zip(features, self.scales, strict=True):
            hidden = self.bbox_tower(feature)
            heat_logits.append(self.agn_hm(hidden))
            distances.append(F.relu(scale(self.bbox_pred(hidden))))
        return heat_logits, distances


@dataclass(frozen=True)
class HeatMapLoss:
    """Penalty-reduced focal loss (Zhou et al., Objects as points, 2019, equation 1), with a weight for each half.

    Args:
        positive_weight, negative_weight: of the halves in the sum of all losses; not applied here.
        alpha: weight of the positive half; the negative one has ``1 - alpha``.
        beta: how fast a cell near a centre stops being a negative.
        gamma: how fast a cell that is already right stops counting.
        clamp: probabilities stay this far from 0 and 1.
        ignore_above: a negative with a higher probability does not count: it may be an object without
            annotation.
    """

    positive_weight: float
    negative_weight: float
    alpha: float
    beta: float
    gamma: float
    clamp: float
    ignore_above: float

    def __call__(
        self, logits: Tensor, heat: Tensor, center_index: Tensor, is_center: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The positive and the negative half, summed over all cells.

        ``logits``, ``heat``: float32 (B, M), prediction and target, in [0, 1], for every cell. ``center_index``,
        ``is_center``: (B, K), the cells at which objects lie; a cell with two objects counts twice.
        """
        probability = logits.sigmoid().clamp(self.clamp, 1 - self.clamp)
        at_center = probability.gather(1, center_index)
        positive = at_center.log() * (1 - at_center) ** self.gamma * is_center
        counted = probability < self.ignore_above
        negative = (1 - probability).log() * probability**self.gamma * (1 - heat) ** self.beta * counted
        return -self.alpha * positive.sum(), -(1 - self.alpha) * negative.sum()


def giou_distance_loss(distances: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al., 2019) of two boxes around the same location, summed.

    Args:
        distances, targets: float32 (..., 4), from the location to left, top, right, bottom, in units of the stride.
        counts: bool (...), which locations have a target.

    The two ones keep the IoU defined for boxes without area, as in CenterNet2.
    """
    smaller, larger = torch.minimum(distances, targets), torch.maximum(distances, targets)
    intersection, hull = _area(smaller), _area(larger)
    union = _area(distances) + _area(targets) - intersection
    giou = (intersection + 1) / (union + 1) - (hull - union) / hull
    return torch.where(counts, 1 - giou, 0.0).sum()


def _area(distances: Tensor) -> Tensor:
    return (distances[..., :2] + distances[..., 2:]).prod(-1)


@dataclass(frozen=True)
class Proposals:
    """Of one image: ``boxes`` float32 (R, 4) XYXY pixels, best first; they may reach beyond the image.
    ``scores``: float32 (R,), square root of the heat map."""

    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True)
class ProposalSelection:
    """``score_threshold`` applies to the heat map, ``pre_nms`` to each level, ``post_nms`` to the image."""

    score_threshold: float
    nms_threshold: float
    pre_nms: int
    post_nms: int


class CenterNet(nn.Module):
    """CenterNet as the first stage of a two-stage detector.

    Args:
        head: predicts heat map and distances on each level.
        strides: of the levels, in pixels.
        assigner: makes the targets.
        heat_map_loss, box_weight: what the losses weigh.
        when_training, when_testing: which boxes become proposals.
    """

    def __init__(
        self,
        head: CenterNetHead,
        strides: Sequence[int],
        assigner: CenterNetTargetAssigner,
        heat_map_loss: HeatMapLoss,
        box_weight: float,
        when_training: ProposalSelection,
        when_testing: ProposalSelection,
    ) -> None:
        super().__init__()
        self.centernet_head = head
        self.strides = list(strides)
        self.assigner = assigner
        self.heat_map_loss = heat_map_loss
        self.box_weight = box_weight
        self.when_training = when_training
        self.when_testing = when_testing

    def forward(
        self, features: Sequence[Tensor], truth: GroundTruth | None = None
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals of each image and, with ``truth``, the losses (summed over the batch, divided by the
        number of positives averaged over the processes)."""
        heat_logits, distances = self.centernet_head(features)
        shapes = [(int(level.shape[2]), int(level.shape[3])) for level in features]
        locations = Locations.of(shapes, self.strides, features[0].device)
        heat_logits = torch.cat([level.flatten(1) for level in heat_logits], dim=1).float()  # (B, M)
        distances = torch.cat([level.flatten(2) for level in distances], dim=2).mT.float()  # (B, M, 4)
        losses = {} if truth is None else self._losses(locations, heat_logits, distances, truth)
        with torch.no_grad():
            proposals = self._proposals(locations, shapes, heat_logits.sigmoid(), distances)
        return proposals, losses

    def _losses(
        self, locations: Locations, heat_logits: Tensor, distances: Tensor, truth: GroundTruth
    ) -> dict[str, Tensor]:
        targets = [
            self.assigner(locations, boxes[:count])
            for boxes, count in zip(truth.boxes, truth.counts, strict=True)
        ]
        is_center = pad_sequence([target.is_center for target in targets], batch_first=True)
        has_box = torch.stack([target.has_box for target in targets])
        positive, negative = self.heat_map_loss(
            heat_logits,
            torch.stack([target.heat for target in targets]),
            pad_sequence([target.center_index for target in targets], batch_first=True),
            is_center,
        )
        box = giou_distance_loss(distances, torch.stack([target.distances for target in targets]), has_box)
        counts = torch.stack([is_center.sum(), has_box.sum()]).float()
        num_centers, num_boxes = mean_over_ranks(counts).clamp(min=1)
        return {
            "loss_centernet_loc": self.box_weight * box / num_boxes,
            "loss_centernet_agn_pos": self.heat_map_loss.positive_weight * positive / num_centers,
            "loss_centernet_agn_neg": self.heat_map_loss.negative_weight * negative / num_centers,
        }

    def _proposals(
        self, locations: Locations, shapes: Sequence[tuple[int, int]], heat: Tensor, distances: Tensor
    ) -> list[Proposals]:
        selection = self.when_training if self.training else self.when_testing
        kept, start = [], 0
        for rows, columns in shapes:
            level_heat = heat[:, start : start + rows * columns]
            best = level_heat.topk(min(selection.pre_nms, rows * columns), dim=1, sorted=False)
            kept.append(best.indices + start)
            start += rows * columns
        index = torch.cat(kept, dim=1)  # (B, K)
        heat = heat.gather(1, index)
        reach = distances.gather(1, index[:, :, None].expand(-1, -1, 4))
        reach = reach * locations.strides[locations.level[index]][:, :, None]
        points = locations.points[index]
        top_left = points - reach[:, :, :2]
        bottom_right = torch.maximum(points + reach[:, :, 2:], top_left + 0.01)
        boxes = torch.cat([top_left, bottom_right], dim=2)
        return [
            self._select(boxes_of_image, heat_of_image, selection)
            for boxes_of_image, heat_of_image in zip(boxes, heat, strict=True)
        ]

    @staticmethod
    def _select(boxes: Tensor, heat: Tensor, selection: ProposalSelection) -> Proposals:
        candidate = heat > selection.score_threshold
        boxes, scores = boxes[candidate], heat[candidate].sqrt()
        keep = nms(boxes, scores, selection.nms_threshold)[: selection.post_nms]
        return Proposals(boxes[keep], scores[keep])
