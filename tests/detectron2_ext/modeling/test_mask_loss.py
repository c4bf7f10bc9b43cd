import torch

from detectron2_ext.modeling.roi_heads import MaskHead, mask_loss
from detectron2_ext.modeling.roi_sampling import LabeledRois
from detectron2_ext.structures import BitMasks


def test_loss_without_foreground_reaches_every_weight():
    head = MaskHead(8, 8, num_convs=2)
    nothing = LabeledRois(torch.zeros(0, 4), *(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    loss = mask_loss(
        head(torch.zeros(0, 8, 14, 14)),
        nothing,
        [BitMasks.from_full(torch.ones(1, 64, 96)), BitMasks.from_full(torch.ones(0, 64, 96))],
    )
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None for parameter in head.parameters())
