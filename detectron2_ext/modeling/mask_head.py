"""From pooled features to the object's outline."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2_ext.modeling.initialization import fill_fan_out
from detectron2_ext.modeling.roi_sampling import LabeledRois
from detectron2_ext.structures import BitMasks


class MaskHead(nn.Module):
    """Convolutions ``mask_fcn1`` … ``mask_fcnN``, an upsampling by 2 and one class-agnostic mask (Mask
    R-CNN)."""

    def __init__(self, in_channels: int, width: int = 256, num_convs: int = 4) -> None:
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
