"""The detector: from images of any size to losses, or to detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2_ext.modeling.centernet import CenterNet
from detectron2_ext.modeling.postprocessing import resize_detections, with_pasted_masks
from detectron2_ext.modeling.roi_heads import CascadeRoiHeads
from detectron2_ext.modeling.roi_sampling import GroundTruth
from detectron2_ext.structures import Instances

_SIZE_DIVISIBILITY = 32  # the stride of a backbone's coarsest feature


class ImagePreprocessor(nn.Module):
    """Normalises pixel values (0-255) once and pads below and to the right with the mean, to multiples of 32.

    Args:
        pixel_mean, pixel_std: per channel, in the order and range (0-255) of the images.
    """

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Images (3, H_n, W_n), uint8 or float in 0-255, to (N, 3, H, W) and the sizes before padding."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height = self._padded(max(height for height, _ in sizes))
        width = self._padded(max(width for _, width in sizes))
        batch = self.pixel_mean.new_zeros(len(images), 3, height, width)
        for target, image, (h, w) in zip(batch, images, sizes, strict=True):
            target[:, :h, :w] = self._normalize(image.to(self.device, non_blocking=True))
        return batch, sizes

    def from_batch(self, images: Tensor) -> Tensor:
        """The same for images (N, 3, H, W) of one size, differentiable."""
        height, width = images.shape[-2:]
        padding = (0, self._padded(width) - width, 0, self._padded(height) - height)
        return F.pad(self._normalize(images), padding)

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.pixel_mean) / self.pixel_std

    def _padded(self, extent: int) -> int:
        return -(-extent // _SIZE_DIVISIBILITY) * _SIZE_DIVISIBILITY


class CenterNet2(nn.Module):
    """Probabilistic two-stage instance segmentation (Zhou et al., 2021), with Detectron2's calling
    convention.

    Args:
        preprocessor: makes one normalised batch of images of any size.
        backbone: from a batch (B, 3, H, W) to pyramid features by name.
        proposal_features, roi_features: names of the levels that the stages use, finest first.
        half_backbone: whether the backbone trains in :func:`half_type`; it predicts in float32, as all else.
    """

    def __init__(
        self,
        preprocessor: ImagePreprocessor,
        backbone: nn.Module,
        proposal_generator: CenterNet,
        roi_heads: CascadeRoiHeads,
        proposal_features: Sequence[str],
        roi_features: Sequence[str],
        half_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.preprocessor = preprocessor
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.proposal_features = list(proposal_features)
        self.roi_features = list(roi_features)
        self.half_backbone = half_backbone

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]], pasted_apart: bool = False
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: one mapping per image: ``image``, uint8 (3, H, W), channels in the order of the
                pixel mean; in training ``instances`` (see :class:`~detectron2_ext.structures.Instances`);
                else optionally ``height`` and ``width``, the size in pixels that the detections refer to (the
                image's own if absent).
            pasted_apart: in training, give what pasted objects have in the classification losses once more, by itself
                (see :meth:`~detectron2_ext.modeling.roi_heads.CascadeRoiHeads.losses`).

        Returns:
            In training float32 scalars by name; otherwise one ``{"instances": …}`` per image with
            ``pred_boxes`` float32 (N, 4), ``scores`` float32 (N,), ``pred_classes`` int64 (N,) and, with a
            mask head, ``pred_masks`` bool (N, height, width), best first.
        """
        if not self.training:
            return [{"instances": with_pasted_masks(found)} for found in self.detect(batched_inputs)]
        sizes, proposal_features, roi_features = self._features(batched_inputs)
        instances = [entry["instances"] for entry in batched_inputs]
        truth = GroundTruth.from_instances(instances, self.preprocessor.device)
        proposals, losses = self.proposal_generator(proposal_features, truth)
        return self.roi_heads.losses(roi_features, sizes, proposals, truth, pasted_apart) | losses

    def class_losses(
        self, batched_inputs: Sequence[Mapping[str, Any]], through_backbone: bool = True
    ) -> dict[str, Tensor]:
        """The cascade's classification losses where the proposals are the objects' own boxes.

        The backbone is in evaluation mode meanwhile, so that its statistics stay, and nothing is proposed.

        Args:
            batched_inputs: as :meth:`forward` takes them in training; masks are not looked at.
            through_backbone: False: without gradients of the backbone, which saves their memory.

        Returns:
            Float32 scalars by name.
        """
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.set_grad_enabled(through_backbone):
                sizes, _, roi_features = self._features(batched_inputs)
        finally:
            self.backbone.train(was_training)
        instances = [entry["instances"] for entry in batched_inputs]
        truth = GroundTruth.from_instances(instances, self.preprocessor.device)
        return self.roi_heads.class_losses(roi_features, sizes, truth)

    def detect(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[Instances]:
        """The detections of :meth:`forward`, but ``pred_masks`` are float32 (N, S, S), probabilities over the boxes.

        Masks of whole images are never made.
        """
        sizes, proposal_features, roi_features = self._features(batched_inputs)
        proposals, _ = self.proposal_generator(proposal_features)
        detections = self.roi_heads.detect(roi_features, sizes, proposals)
        return [
            resize_detections(found, int(entry.get("height", size[0])), int(entry.get("width", size[1])))
            for entry, found, size in zip(batched_inputs, detections, sizes, strict=True)
        ]

    def _features(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> tuple[list[tuple[int, int]], list[Tensor], list[Tensor]]:
        """Sizes of the images, and the levels that each of the two stages looks at."""
        images, sizes = self.preprocessor([entry["image"] for entry in batched_inputs])
        features = self._pyramid(images)
        proposal_features = [features[name] for name in self.proposal_features]
        return sizes, proposal_features, [features[name] for name in self.roi_features]

    def _pyramid(self, images: Tensor) -> Mapping[str, Tensor]:
        if not (self.training and self.half_backbone):
            features: Mapping[str, Tensor] = self.backbone(images)
            return features
        with torch.autocast(images.device.type, half_type(images.device)):
            features = self.backbone(images)
        return {name: feature.float() for name, feature in features.items()}


def half_type(device: torch.device) -> torch.dtype:
    """Half precision in training: float16, for which losses are to be scaled; on a CPU bfloat16, which it has."""
    return torch.bfloat16 if device.type == "cpu" else torch.float16
