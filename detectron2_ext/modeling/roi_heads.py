"""The second stage: cascade of box heads (Cai and Vasconcelos, 2018) and mask head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from detectron2_ext.modeling.boxes import BoxCoder, clip_to_image, has_area
from detectron2_ext.modeling.centernet import Proposals
from detectron2_ext.modeling.extra_classes import without_extra_classes
from detectron2_ext.modeling.federated_loss import FederatedClassSampler, sigmoid_classification_loss
from detectron2_ext.modeling.layers import fill_fan_in, fill_fan_out
from detectron2_ext.modeling.postprocessing import DetectionSelection
from detectron2_ext.modeling.roi_sampling import (
    GroundTruth,
    LabeledRois,
    Lessons,
    RoiSampler,
    from_pasted_objects,
    label_rois,
    rois_of_objects,
)
from detectron2_ext.modeling.text_classifier import TextBoxPredictor
from detectron2_ext.roi_pooler import RoiPooler
from detectron2_ext.structures import BitMasks, Instances


class BoxHead(nn.Module):
    """Fully connected layers ``fc1`` … ``fcN``, each with ReLU.

    Args:
        in_features: channels x rows x columns of the pooled features.
        width: of each layer; the feature before the classifier has as many entries.
        num_layers: how many there are.
    """

    def __init__(self, in_features: int, width: int, num_layers: int) -> None:
        super().__init__()
        for index in range(num_layers):
            layer = nn.Linear(in_features if index == 0 else width, width)
            fill_fan_in(layer)
            self.add_module(f"fc{index + 1}", layer)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, S, S) to (R, width)."""
        hidden = pooled.flatten(1)
        for layer in self.children():
            hidden = F.relu(layer(hidden))
        return hidden


class BoxPredictor(nn.Module):
    """Class logits and class-agnostic box deltas.

    Args:
        in_features: of the box head.
        num_classes: without background, which is the last logit.
        prior_prob: probability that the untrained classifier gives every class.
        class_weights: float (num_classes,), relative chance of each class to be a negative in the federated
            loss (buffer ``freq_weight``); None where the loss covers all classes.
    """

    def __init__(
        self, in_features: int, num_classes: int, prior_prob: float, class_weights: Tensor | None
    ) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4)
        self.register_buffer("freq_weight", None if class_weights is None else class_weights.clone())
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(R, in_features) to logits (R, num_classes + 1) and deltas (R, 4)."""
        return self.cls_score(hidden), self.bbox_pred(hidden)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class MaskHead(nn.Module):
    """Convolutions ``mask_fcn1`` … ``mask_fcnN``, an upsampling by 2 and one class-agnostic mask (Mask
    R-CNN)."""

    def __init__(self, in_channels: int, width: int, num_convs: int) -> None:
        super().__init__()
        self.conv_names = [f"mask_fcn{index + 1}" for index in range(num_convs)]
        channels = in_channels
        for name in self.conv_names:
            self.add_module(name, nn.Conv2d(channels, width, 3, padding=1))
            channels = width
        self.deconv = nn.ConvTranspose2d(channels, width, 2, stride=2)
        for layer in self.children():
            fill_fan_out(layer)
        self.predictor = nn.Conv2d(width, 1, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, S, S) to logits (R, 2S, 2S)."""
        hidden = pooled
        for name in self.conv_names:
            hidden = F.relu(getattr(self, name)(hidden))
        return self.predictor(F.relu(self.deconv(hidden)))[:, 0]


def mask_loss(logits: Tensor, rois: LabeledRois, masks: Sequence[BitMasks]) -> Tensor:
    """Mean binary cross entropy of the masks of foreground boxes.

    ``logits``: (R, S, S). ``rois``: the R boxes, ordered by image. ``masks``: the objects of each image.
    """
    targets = []
    for index, of_image in enumerate(masks):
        mine = (rois.image_index == index).nonzero().squeeze(1)
        targets.append(of_image[rois.gt_index[mine]].crop_and_resize(rois.boxes[mine], logits.shape[-1]))
    total = F.binary_cross_entropy_with_logits(logits.float(), torch.cat(targets), reduction="sum")
    return total / max(logits.numel(), 1)


class CascadeRoiHeads(nn.Module):
    """Cascade R-CNN (Cai and Vasconcelos, 2018) with sigmoid classification and a class-agnostic mask.

    Args:
        num_classes: without background.
        box_pooler, mask_pooler: take the features of the boxes from the pyramid levels given to ``forward``.
        box_heads, box_predictors, box_coders, iou_thresholds: one per stage; the threshold says from which
            overlap a box shows an object.
        mean_over_foreground: the box loss is a mean over the deltas of the boxes that show an object; else their
            sum is divided by the number of all boxes.
        mask_head: None for boxes only.
        box_lessons, mask_lessons: of the boxes that show an object, those that the box and the mask loss are about.
        sampler: draws the boxes of the first stage in training; its threshold is the first stage's.
        class_sampler: draws the classes that the classification loss covers; None for all of them.
        selection: turns boxes and scores into detections.
        num_extra_classes: so many of the classes, the last ones, are never detected.
    """

    def __init__(
        self,
        num_classes: int,
        box_pooler: RoiPooler,
        box_heads: Sequence[BoxHead],
        box_predictors: Sequence[BoxPredictor | TextBoxPredictor],
        box_coders: Sequence[BoxCoder],
        iou_thresholds: Sequence[float],
        mean_over_foreground: bool,
        mask_pooler: RoiPooler,
        mask_head: MaskHead | None,
        box_lessons: Lessons,
        mask_lessons: Lessons,
        sampler: RoiSampler,
        class_sampler: FederatedClassSampler | None,
        selection: DetectionSelection,
        num_extra_classes: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_extra_classes = num_extra_classes
        self.box_pooler = box_pooler
        self.box_head = nn.ModuleList(box_heads)
        self.box_predictor = nn.ModuleList(box_predictors)
        self.box_coders = list(box_coders)
        self.iou_thresholds = list(iou_thresholds)
        self.mean_over_foreground = mean_over_foreground
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.box_lessons = box_lessons
        self.mask_lessons = mask_lessons
        self.sampler = sampler
        self.class_sampler = class_sampler
        self.selection = selection

    @property
    def num_stages(self) -> int:
        return len(self.box_head)

    def losses(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Proposals],
        truth: GroundTruth,
        pasted_apart: bool = False,
    ) -> dict[str, Tensor]:
        """``loss_cls_stageK`` and ``loss_box_reg_stageK`` of each stage and ``loss_mask``.

        ``features``: (B, C, H_l, W_l) of the levels that the poolers know. ``image_sizes``: (height, width)
        in pixels. ``pasted_apart``: with ``pasted_cls_stageK``, too, that part of ``loss_cls_stageK`` which the boxes
        that show pasted objects make.
        """
        first_rois = self.sampler([of_image.boxes for of_image in proposals], truth)
        losses = {}
        for stage, rois, logits, deltas in self._cascade(features, image_sizes, first_rois, truth):
            counted = self._counted_classes(stage, rois.classes)
            losses[f"loss_cls_stage{stage}"] = sigmoid_classification_loss(logits, rois.classes, counted)
            losses[f"loss_box_reg_stage{stage}"] = self._box_loss(stage, deltas, rois, truth)
            if pasted_apart:
                shown = self._teaching(rois, truth, from_pasted_objects)
                loss = sigmoid_classification_loss(logits[shown], rois.classes[shown], counted)
                losses[f"pasted_cls_stage{stage}"] = loss * (len(shown) / max(len(logits), 1))
        if self.mask_head is not None and truth.masks is not None:
            foreground = first_rois[self._teaching(first_rois, truth, self.mask_lessons)]
            pooled = self.mask_pooler(features, foreground.boxes, foreground.image_index)
            losses["loss_mask"] = mask_loss(self.mask_head(pooled), foreground, truth.masks)
        return losses

    def class_losses(
        self, features: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]], truth: GroundTruth
    ) -> dict[str, Tensor]:
        """``loss_cls_stageK`` of each stage, where the first one's boxes are those of the objects, each once."""
        stages = self._cascade(features, image_sizes, rois_of_objects(truth), truth)
        return {
            f"loss_cls_stage{stage}": sigmoid_classification_loss(
                logits, rois.classes, self._counted_classes(stage, rois.classes)
            )
            for stage, rois, logits, _ in stages
        }

    def _cascade(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        rois: LabeledRois,
        truth: GroundTruth,
    ) -> Iterator[tuple[int, LabeledRois, Tensor, Tensor]]:
        """Number, boxes, logits and deltas of each stage; ``rois``: the first one's boxes."""
        sizes = torch.tensor(image_sizes, device=features[0].device)
        boxes = rois.boxes
        for stage in range(self.num_stages):
            if stage > 0:
                rois = self._relabel(boxes, rois.image_index, sizes, truth, stage)
            hidden = self._hidden(stage, features, rois.boxes, rois.image_index)
            logits, deltas = self.box_predictor[stage](hidden)
            yield stage, rois, logits, deltas
            boxes = self.box_coders[stage].decode(deltas.detach(), rois.boxes)

    @torch.no_grad()
    def detect(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Proposals],
    ) -> list[Instances]:
        """Detections of each image; ``pred_masks`` are probabilities float32 (N, S, S) over the box.

        They are those of a network without the extra classes, to the last bit.
        """
        sizes = torch.tensor(image_sizes, device=features[0].device)
        boxes = torch.cat([of_image.boxes for of_image in proposals])
        counts = [len(of_image.boxes) for of_image in proposals]
        image_index = _image_index(counts, boxes.device)
        probability = boxes.new_zeros(len(boxes), self.num_classes - self.num_extra_classes)
        for stage in range(self.num_stages):
            if stage > 0:
                boxes = clip_to_image(boxes, sizes[image_index])
            logits, deltas = self._predict_reported(stage, self._hidden(stage, features, boxes, image_index))
            probability += logits[:, :-1].float().sigmoid() / self.num_stages
            boxes = self.box_coders[stage].decode(deltas, boxes)
        proposal_scores = torch.cat([of_image.scores for of_image in proposals])
        scores = (probability * proposal_scores[:, None]).sqrt()
        detections = [
            self.selection(boxes_of_image, scores_of_image, size)
            for boxes_of_image, scores_of_image, size in zip(
                boxes.split(counts), scores.split(counts), image_sizes, strict=True
            )
        ]
        if self.mask_head is not None:
            self._add_masks(features, detections)
        return detections

    def _add_masks(self, features: Sequence[Tensor], detections: Sequence[Instances]) -> None:
        counts = [len(of_image) for of_image in detections]
        boxes = torch.cat([of_image.pred_boxes for of_image in detections])
        pooled = self.mask_pooler(features, boxes, _image_index(counts, boxes.device))
        masks = self.mask_head(pooled).float().sigmoid()
        for of_image, masks_of_image in zip(detections, masks.split(counts), strict=True):
            of_image.pred_masks = masks_of_image

    def _hidden(self, stage: int, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        pooled = self.box_pooler(features, boxes, image_index)
        pooled = ScaleGradient.apply(pooled, 1 / self.num_stages)
        return self.box_head[stage](pooled)

    def _predict_reported(self, stage: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the stage's predictor gives, without extra classes.

        Their rows are cut before the product and not their columns after it: sums round by the product's shape.
        """
        predictor = self.box_predictor[stage]
        if not self.num_extra_classes:
            return predictor(hidden)
        weights = {**dict(predictor.named_parameters()), **dict(predictor.named_buffers())}
        return functional_call(predictor, without_extra_classes(weights, self.num_extra_classes), (hidden,))

    def _relabel(
        self, boxes: Tensor, image_index: Tensor, sizes: Tensor, truth: GroundTruth, stage: int
    ) -> LabeledRois:
        boxes = clip_to_image(boxes, sizes[image_index])
        keep = has_area(boxes).nonzero().squeeze(1)
        return label_rois(boxes[keep], image_index[keep], truth, self.iou_thresholds[stage], self.num_classes)

    def _counted_classes(self, stage: int, classes: Tensor) -> Tensor:
        """Indices of the classes that a stage's classification loss covers."""
        if self.class_sampler is None:
            return torch.arange(self.num_classes, device=classes.device)
        return self.class_sampler(classes, self.box_predictor[stage].freq_weight)

    def _teaching(self, rois: LabeledRois, truth: GroundTruth, lessons: Lessons) -> Tensor:
        return ((rois.classes < self.num_classes) & lessons(rois, truth)).nonzero().squeeze(1)

    def _box_loss(self, stage: int, deltas: Tensor, rois: LabeledRois, truth: GroundTruth) -> Tensor:
        """L1 on the deltas of the boxes that show an object, summed and divided as ``mean_over_foreground`` says."""
        foreground = self._teaching(rois, truth, self.box_lessons)
        shown = rois[foreground]
        gt_boxes = truth.boxes[shown.image_index, shown.gt_index]
        targets = self.box_coders[stage].encode(shown.boxes, gt_boxes)
        divisor = targets.numel() if self.mean_over_foreground else len(rois.classes)
        return (deltas[foreground].float() - targets).abs().sum() / max(divisor, 1)


def _image_index(counts: Sequence[int], device: torch.device) -> Tensor:
    """int64 (sum of counts,): 0 ``counts[0]`` times, 1 ``counts[1]`` times, …"""
    return torch.repeat_interleave(torch.tensor(counts)).to(device)
