"""The whole network."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detectron2_ext.modeling.cascade_roi_heads import CascadeRoiHeads
from detectron2_ext.modeling.centernet import CenterNet
from detectron2_ext.modeling.ground_truth import GroundTruth
from detectron2_ext.modeling.postprocessing import resize_detections
from detectron2_ext.modeling.preprocessing import ImagePreprocessor
from detectron2_ext.structures import Instances


class CenterNet2(nn.Module):
    """Probabilistic two-stage instance segmentation (Zhou et al., 2021), with Detectron2's calling
    convention.

    Args:
        preprocessor: makes one normalised batch of images of any size.
        backbone: from a batch (B, 3, H, W) to pyramid features by name.
        proposal_features, roi_features: names of the levels that the stages use, finest first.
    """

    def __init__(
        self,
        preprocessor: ImagePreprocessor,
        backbone: nn.Module,
        proposal_generator: CenterNet,
        roi_heads: CascadeRoiHeads,
        proposal_features: Sequence[str],
        roi_features: Sequence[str],
    ) -> None:
        super().__init__()
        self.preprocessor = preprocessor
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.proposal_features = list(proposal_features)
        self.roi_features = list(roi_features)

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: one mapping per image: ``image``, uint8 (3, H, W), channels in the order of the
                pixel mean; in training ``instances`` (see :class:`~detectron2_ext.structures.Instances`);
                else optionally ``height`` and ``width``, the size in pixels that the detections refer to (the
                image's own if absent).

        Returns:
            In training float32 scalars by name; otherwise one ``{"instances": …}`` per image with
            ``pred_boxes`` float32 (N, 4), ``scores`` float32 (N,), ``pred_classes`` int64 (N,) and, with a
            mask head, ``pred_masks`` bool (N, height, width), best first.
        """
        images, sizes = self.preprocessor([entry["image"] for entry in batched_inputs])
        features = self.backbone(images)
        proposal_features = [features[name] for name in self.proposal_features]
        roi_features = [features[name] for name in self.roi_features]
        if self.training:
            instances = [entry["instances"] for entry in batched_inputs]
            truth = GroundTruth.from_instances(instances, images.device)
            proposals, losses = self.proposal_generator(proposal_features, truth)
            return self.roi_heads.losses(roi_features, sizes, proposals, truth) | losses
        proposals, _ = self.proposal_generator(proposal_features)
        detections = self.roi_heads.detect(roi_features, sizes, proposals)
        results = []
        for entry, found, size in zip(batched_inputs, detections, sizes, strict=True):
            height, width = int(entry.get("height", size[0])), int(entry.get("width", size[1]))
            results.append({"instances": resize_detections(found, height, width)})
        return results
