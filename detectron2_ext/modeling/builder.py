"""The configuration becomes a network here, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from detectron2_ext.modeling.boxes import BoxCoder
from detectron2_ext.modeling.centernet import CenterNet, CenterNetHead, HeatMapLoss, ProposalSelection
from detectron2_ext.modeling.centernet_targets import CenterNetTargetAssigner
from detectron2_ext.modeling.detector import CenterNet2, ImagePreprocessor
from detectron2_ext.modeling.federated_loss import FederatedClassSampler
from detectron2_ext.modeling.feedback_network import FeedbackNetwork
from detectron2_ext.modeling.fpn import FeaturePyramid
from detectron2_ext.modeling.postprocessing import DetectionSelection
from detectron2_ext.modeling.resnet import TimmResNet
from detectron2_ext.modeling.roi_heads import BoxHead, BoxPredictor, CascadeRoiHeads, MaskHead
from detectron2_ext.modeling.roi_sampling import RoiSampler, from_every_object, from_real_objects
from detectron2_ext.modeling.swin import SWIN_SIZES, SwinTransformer
from detectron2_ext.modeling.text_classifier import TextBoxPredictor, TextClassifier, read_text_features
from detectron2_ext.modeling.weights import load_weights
from detectron2_ext.roi_pooler import RoiPooler
from exchange.config import at_least, choose, flatten, from_repository
from exchange.errors import UserError

_FEEDBACK_OUTPUTS = {"FeedbackRCNN": "logits", "EmbedRCNN": "embedding"}
_CHOICES = {
    "META_ARCHITECTURE": ("CustomRCNN", *_FEEDBACK_OUTPUTS),
    "BACKBONE.NAME": ("build_p67_timm_fpn_backbone", "build_swintransformer_fpn_backbone"),
    "TIMM.NORM": ("FrozenBN", "BN"),
    "SWIN.SIZE": tuple(SWIN_SIZES),
    "PROPOSAL_GENERATOR.NAME": ("CenterNet",),
    "CENTERNET.WITH_AGN_HM": (True,),
    "CENTERNET.ONLY_PROPOSAL": (True,),
    "CENTERNET.NOT_NORM_REG": (True,),
    "ROI_HEADS.NAME": ("DeticCascadeROIHeads", "DeticCascadeROIHeadsLogits", "DeticCascadeROIHeadsEmbeds"),
    "ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (True,),
    "ROI_BOX_HEAD.MULT_PROPOSAL_SCORE": (True,),
    "ROI_BOX_HEAD.USE_SIGMOID_CE": (True,),
    "ROI_BOX_HEAD.BBOX_REG_LOSS_PER": ("sampled", "foreground"),
    "ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (True,),
}


def build_model(
    cfg: CfgNode,
    class_image_counts: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The network that ``cfg.MODEL`` describes, with random weights, on the CPU.

    Args:
        class_image_counts: training images that show each class, for the federated loss, unless
            ``ROI_BOX_HEAD.CAT_FREQ_PATH`` names a file that says so. Without either all classes weigh the
            same.
        generator: of the random numbers that training draws (boxes and classes of the losses), on the
            network's device; torch's own where it is None.

    Returns:
        :class:`CenterNet2`, or :class:`FeedbackNetwork` for the meta-architectures FeedbackRCNN and
        EmbedRCNN.

    Raises:
        UserError: a setting asks for what this network does not have.
    """
    detector = build_detector(cfg, class_image_counts, generator)
    return detector if cfg.MODEL.META_ARCHITECTURE == "CustomRCNN" else build_feedback_network(cfg, detector)


def build_detector(
    cfg: CfgNode,
    class_image_counts: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> CenterNet2:
    """The detector of ``cfg.MODEL``, whatever its meta-architecture; arguments of :func:`build_model`."""
    model = cfg.MODEL
    _check_choices(model)
    return CenterNet2(
        preprocessor=ImagePreprocessor(model.PIXEL_MEAN, model.PIXEL_STD),
        backbone=_build_backbone(model),
        proposal_generator=_build_proposal_generator(model),
        roi_heads=_build_roi_heads(cfg, _class_weights(model, class_image_counts), generator),
        proposal_features=model.CENTERNET.IN_FEATURES,
        roi_features=model.ROI_HEADS.IN_FEATURES,
        half_backbone=trains_half_backbone(cfg),
    )


def trains_half_backbone(cfg: CfgNode) -> bool:
    """Whether the backbone alone trains in half precision: not where SOLVER.AMP casts the whole network."""
    return bool(cfg.FP16 and not cfg.SOLVER.AMP.ENABLED)


def build_feedback_network(cfg: CfgNode, detector: CenterNet2) -> FeedbackNetwork:
    """What ``detector`` thinks of whole images: its embedding for EmbedRCNN, logits for the others.

    Raises UserError for an order of channels that there is not.
    """
    bgr = choose(cfg, "INPUT.FORMAT", {"RGB": False, "BGR": True})
    output = _FEEDBACK_OUTPUTS.get(cfg.MODEL.META_ARCHITECTURE, "logits")
    return FeedbackNetwork(detector, output, bgr=bgr)


def load_feedback_network(
    cfg: CfgNode,
    checkpoint_path: str,
    *,
    content: dict[str, Any] | None = None,
    sha256: str | None = None,
    use_ema: bool = True,
    device: torch.device | str = "cpu",
) -> FeedbackNetwork:
    """The network in evaluation mode, in float32 as it was trained, its weights without gradients.

    Args:
        cfg: of the detector; its meta-architecture says what the network returns (EmbedRCNN: the embedding).
        content: of the file, where it has been read already.
        sha256: of the file, in hexadecimal; None does not check.
        use_ema: take the averaged weights where the file has them.

    Raises:
        UserError: the file is missing, damaged, another one than ``sha256`` or of another network.
    """
    detector = build_detector(cfg)
    load_weights(detector, checkpoint_path, use_ema=use_ema, sha256=sha256, content=content)
    return build_feedback_network(cfg, detector).to(device).eval().requires_grad_(False)


def _check_choices(model: CfgNode) -> None:
    values = dict(flatten(model))
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            listed = ", ".join(map(str, choices))
            raise UserError(
                f"MODEL.{key} is {values[key]!r}, which this network does not have: set it to {listed}"
            )


def _build_backbone(model: CfgNode) -> FeaturePyramid:
    if model.BACKBONE.NAME == "build_swintransformer_fpn_backbone":
        bottom_up: nn.Module = SwinTransformer(SWIN_SIZES[model.SWIN.SIZE], model.SWIN.USE_CHECKPOINT)
    else:
        bottom_up = TimmResNet(model.TIMM.BASE_NAME, frozen_norm=model.TIMM.NORM == "FrozenBN")
    if list(model.FPN.IN_FEATURES) != list(bottom_up.channels):
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {list(model.FPN.IN_FEATURES)}: for {model.BACKBONE.NAME} set it to "
            f"{list(bottom_up.channels)}"
        )
    return FeaturePyramid(bottom_up, model.FPN.IN_FEATURES, model.FPN.OUT_CHANNELS)


def _build_proposal_generator(model: CfgNode) -> CenterNet:
    node = model.CENTERNET
    return CenterNet(
        head=CenterNetHead(
            model.FPN.OUT_CHANNELS, len(node.IN_FEATURES), node.NUM_BOX_CONVS, node.PRIOR_PROB
        ),
        strides=_strides(node.IN_FEATURES),
        assigner=CenterNetTargetAssigner(node.SOI, node.HM_MIN_OVERLAP, node.MIN_RADIUS),
        heat_map_loss=HeatMapLoss(
            positive_weight=node.POS_WEIGHT,
            negative_weight=node.NEG_WEIGHT,
            alpha=node.HM_FOCAL_ALPHA,
            beta=node.HM_FOCAL_BETA,
            gamma=node.LOSS_GAMMA,
            clamp=node.SIGMOID_CLAMP,
            ignore_above=node.IGNORE_HIGH_FP,
        ),
        box_weight=node.REG_WEIGHT,
        when_training=ProposalSelection(
            node.INFERENCE_TH, node.NMS_TH_TRAIN, node.PRE_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TRAIN
        ),
        when_testing=ProposalSelection(
            node.INFERENCE_TH, node.NMS_TH_TEST, node.PRE_NMS_TOPK_TEST, node.POST_NMS_TOPK_TEST
        ),
    )


def _build_roi_heads(
    cfg: CfgNode, class_weights: Tensor | None, generator: torch.Generator | None
) -> CascadeRoiHeads:
    model = cfg.MODEL
    box, mask, heads = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD, model.ROI_HEADS
    ious, coder_weights = model.ROI_BOX_CASCADE_HEAD.IOUS, model.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
    strides = _strides(heads.IN_FEATURES)
    channels = model.FPN.OUT_CHANNELS
    return CascadeRoiHeads(
        num_classes=heads.NUM_CLASSES,
        box_pooler=RoiPooler(box.POOLER_RESOLUTION, strides),
        box_heads=[BoxHead(channels * box.POOLER_RESOLUTION**2, box.FC_DIM, box.NUM_FC) for _ in ious],
        box_predictors=[_build_box_predictor(box, heads.NUM_CLASSES, class_weights) for _ in ious],
        box_coders=[BoxCoder(weights) for weights in coder_weights],
        iou_thresholds=ious,
        mean_over_foreground=box.BBOX_REG_LOSS_PER == "foreground",
        mask_pooler=RoiPooler(mask.POOLER_RESOLUTION, strides),
        mask_head=MaskHead(channels, mask.CONV_DIM, mask.NUM_CONV) if model.MASK_ON else None,
        box_lessons=from_every_object if model.USE_XPASTE_BOX_LOSS else from_real_objects,
        mask_lessons=from_every_object if model.USE_XPASTE_MASK_LOSS else from_real_objects,
        sampler=RoiSampler(
            at_least(1, cfg, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
            heads.POSITIVE_FRACTION,
            ious[0],
            heads.NUM_CLASSES,
            generator,
        ),
        class_sampler=FederatedClassSampler(box.FED_LOSS_NUM_CAT, generator) if box.USE_FED_LOSS else None,
        selection=DetectionSelection(
            heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, at_least(1, cfg, "TEST.DETECTIONS_PER_IMAGE")
        ),
        num_extra_classes=heads.NUM_EXTRA_CLASSES,
    )


def _build_box_predictor(
    box: CfgNode, num_classes: int, class_weights: Tensor | None
) -> BoxPredictor | TextBoxPredictor:
    if not box.USE_ZEROSHOT_CLS:
        return BoxPredictor(box.FC_DIM, num_classes, box.PRIOR_PROB, class_weights)
    rows = read_text_features(box.ZEROSHOT_WEIGHT_PATH, num_classes)
    return TextBoxPredictor(
        box.FC_DIM, TextClassifier(box.FC_DIM, rows, box.NORM_TEMP, box.USE_BIAS), class_weights
    )


def _strides(levels: Sequence[str]) -> list[int]:
    return [FeaturePyramid.strides[level] for level in levels]


def _class_weights(model: CfgNode, class_image_counts: Sequence[int] | None) -> Tensor | None:
    """The buffer ``freq_weight``: float32 (C,), image count to the power of ``FED_LOSS_FREQ_WEIGHT``."""
    box, num_classes = model.ROI_BOX_HEAD, model.ROI_HEADS.NUM_CLASSES
    if not box.USE_FED_LOSS:
        return None
    source = "the training set"
    if box.CAT_FREQ_PATH:
        source = f"MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH {box.CAT_FREQ_PATH}"
        class_image_counts = _read_image_counts(from_repository(box.CAT_FREQ_PATH))
    if class_image_counts is None:
        return torch.ones(num_classes)
    if len(class_image_counts) != num_classes:
        raise UserError(
            f"{source} has {len(class_image_counts)} categories, but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{num_classes}"
        )
    return torch.tensor(class_image_counts, dtype=torch.float32) ** box.FED_LOSS_FREQ_WEIGHT


def _read_image_counts(path: str) -> list[int]:
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
        return [record["image_count"] for record in sorted(records, key=lambda record: record["id"])]
    except FileNotFoundError as error:
        raise UserError(f"MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH names {path}, which does not exist") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} (MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH) is no JSON list of categories with id and image_count"
        ) from error
