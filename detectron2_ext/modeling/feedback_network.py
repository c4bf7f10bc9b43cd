"""The segmenter as the generator sees it: what it thinks of a whole image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from detectron2_ext.modeling.detector import CenterNet2


class FeedbackNetwork(nn.Module):
    """The last cascade stage alone, on one box that covers the whole image; differentiable in the image.

    Args:
        detector: gives its backbone and the last stage's box head and classifier (shared, not copied).
        output: ``logits``, of the C classes and background; or ``embedding``, the feature before the
            classifier.
        bgr: whether the detector was trained on channels in the order BGR (INPUT.FORMAT).
    """

    def __init__(
        self, detector: CenterNet2, output: Literal["logits", "embedding"] = "logits", bgr: bool = False
    ) -> None:
        super().__init__()
        self.bgr = bgr
        self.preprocessor = detector.preprocessor
        self.backbone = detector.backbone
        self.levels = detector.roi_features
        self.pooler = detector.roi_heads.box_pooler
        self.box_head = detector.roi_heads.box_head[-1]
        last_predictor = detector.roi_heads.box_predictor[-1]
        self.classifier = last_predictor.cls_score if output == "logits" else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], channels in the order RGB.

        Returns:
            float32 logits (N, C + 1), background last, or features (N, width of the box head).
        """
        height, width = images.shape[-2:]
        if self.bgr:
            images = images.flip(1)
        features = self.backbone(self.preprocessor.from_batch(images.float() * 255))
        boxes = torch.tensor([[0.0, 0.0, width, height]], device=images.device).expand(len(images), 4)
        image_index = torch.arange(len(images), device=images.device)
        pooled = self.pooler([features[level] for level in self.levels], boxes, image_index)
        return self.classifier(self.box_head(pooled))
