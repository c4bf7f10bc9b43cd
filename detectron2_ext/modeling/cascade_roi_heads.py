"""The second stage: three box heads that refine each other's boxes, and a mask head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectron2_ext.modeling.box_head import BoxHead, BoxPredictor, ScaleGradient
from detectron2_ext.modeling.boxes import BoxCoder, clip_to_image, has_area
from detectron2_ext.modeling.centernet import Proposals
from detectron2_ext.modeling.federated_loss import FederatedClassSampler, sigmoid_classification_loss
from detectron2_ext.modeling.ground_truth import GroundTruth
from detectron2_ext.modeling.mask_head import MaskHead, mask_loss
from detectron2_ext.modeling.postprocessing import DetectionSelection
from detectron2_ext.modeling.roi_pooler import RoiPooler
from detectron2_ext.modeling.roi_sampling import LabeledRois, RoiSampler, label_rois
from detectron2_ext.structures import Instances


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
        sampler: draws the boxes of the first stage in training; its threshold is the first stage's.
        class_sampler: draws the classes that the classification loss covers; None for all of them.
        selection: turns boxes and scores into detections.
    """

    def __init__(
        self,
        num_classes: int,
        box_pooler: RoiPooler,
        box_heads: Sequence[BoxHead],
        box_predictors: Sequence[BoxPredictor],
        box_coders: Sequence[BoxCoder],
        iou_thresholds: Sequence[float],
        mean_over_foreground: bool,
        mask_pooler: RoiPooler,
        mask_head: MaskHead | None,
        sampler: RoiSampler,
        class_sampler: FederatedClassSampler | None,
        selection: DetectionSelection,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box_pooler = box_pooler
        self.box_head = nn.ModuleList(box_heads)
        self.box_predictor = nn.ModuleList(box_predictors)
        self.box_coders = list(box_coders)
        self.iou_thresholds = list(iou_thresholds)
        self.mean_over_foreground = mean_over_foreground
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
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
    ) -> dict[str, Tensor]:
        """``loss_cls_stageK`` and ``loss_box_reg_stageK`` of each stage and ``loss_mask``.

        ``features``: (B, C, H_l, W_l) of the levels that the poolers know. ``image_sizes``: (height, width)
        in pixels.
        """
        sizes = torch.tensor(image_sizes, device=features[0].device)
        rois = first_rois = self.sampler([of_image.boxes for of_image in proposals], truth)
        boxes = rois.boxes
        losses = {}
        for stage in range(self.num_stages):
            if stage > 0:
                rois = self._relabel(boxes, rois.image_index, sizes, truth, stage)
            logits, deltas = self._run_stage(stage, features, rois.boxes, rois.image_index)
            losses[f"loss_cls_stage{stage}"] = self._class_loss(stage, logits, rois.classes)
            losses[f"loss_box_reg_stage{stage}"] = self._box_loss(stage, deltas, rois, truth)
            boxes = self.box_coders[stage].decode(deltas.detach(), rois.boxes)
        if self.mask_head is not None and truth.masks is not None:
            foreground = first_rois[(first_rois.classes < self.num_classes).nonzero().squeeze(1)]
            pooled = self.mask_pooler(features, foreground.boxes, foreground.image_index)
            losses["loss_mask"] = mask_loss(self.mask_head(pooled), foreground, truth.masks)
        return losses

    @torch.no_grad()
    def detect(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Proposals],
    ) -> list[Instances]:
        """Detections of each image; ``pred_masks`` are probabilities float32 (N, S, S) over the box."""
        sizes = torch.tensor(image_sizes, device=features[0].device)
        boxes = torch.cat([of_image.boxes for of_image in proposals])
        counts = [len(of_image.boxes) for of_image in proposals]
        image_index = _image_index(counts, boxes.device)
        probability = boxes.new_zeros(len(boxes), self.num_classes)
        for stage in range(self.num_stages):
            if stage > 0:
                boxes = clip_to_image(boxes, sizes[image_index])
            logits, deltas = self._run_stage(stage, features, boxes, image_index)
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

    def _run_stage(
        self, stage: int, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_pooler(features, boxes, image_index)
        pooled = ScaleGradient.apply(pooled, 1 / self.num_stages)
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _relabel(
        self, boxes: Tensor, image_index: Tensor, sizes: Tensor, truth: GroundTruth, stage: int
    ) -> LabeledRois:
        boxes = clip_to_image(boxes, sizes[image_index])
        keep = has_area(boxes).nonzero().squeeze(1)
        return label_rois(boxes[keep], image_index[keep], truth, self.iou_thresholds[stage], self.num_classes)

    def _class_loss(self, stage: int, logits: Tensor, classes: Tensor) -> Tensor:
        if self.class_sampler is None:
            class_index = torch.arange(self.num_classes, device=logits.device)
        else:
            class_index = self.class_sampler(classes, self.box_predictor[stage].freq_weight)
        return sigmoid_classification_loss(logits, classes, class_index)

    def _box_loss(self, stage: int, deltas: Tensor, rois: LabeledRois, truth: GroundTruth) -> Tensor:
        """L1 on the deltas of the boxes that show an object, summed and divided as ``mean_over_foreground`` says."""
        foreground = (rois.classes < self.num_classes).nonzero().squeeze(1)
        shown = rois[foreground]
        gt_boxes = truth.boxes[shown.image_index, shown.gt_index]
        targets = self.box_coders[stage].encode(shown.boxes, gt_boxes)
        divisor = targets.numel() if self.mean_over_foreground else len(rois.classes)
        return (deltas[foreground].float() - targets).abs().sum() / max(divisor, 1)


def _image_index(counts: Sequence[int], device: torch.device) -> Tensor:
    """int64 (sum of counts,): 0 ``counts[0]`` times, 1 ``counts[1]`` times, …"""
    return torch.repeat_interleave(torch.tensor(counts)).to(device)
