"""The feedback network of a checkpoint: what the generator loads."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from detectron2_ext.modeling.builder import build_detector, build_feedback_network
from detectron2_ext.modeling.checkpoint import load_weights
from detectron2_ext.modeling.whole_image import FeedbackNetwork

__all__ = ["FeedbackNetwork", "load_feedback_network"]


def load_feedback_network(
    cfg: CfgNode,
    checkpoint_path: str,
    *,
    sha256: str | None = None,
    use_ema: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FeedbackNetwork:
    """The network in evaluation mode, its weights without gradients.

    Args:
        cfg: of the detector; its meta-architecture says what the network returns (EmbedRCNN: the embedding).
        sha256: of the file, in hexadecimal; None does not check.
        use_ema: take the averaged weights where the file has them.
        dtype: of weights and activations; pixels are normalised and boxes pooled in float32.

    Raises:
        UserError: the file is missing, damaged, another one than ``sha256`` or of another network.
    """
    detector = build_detector(cfg)
    load_weights(detector, checkpoint_path, use_ema=use_ema, sha256=sha256)
    network = build_feedback_network(cfg, detector).to(device)
    for part in (network.backbone, network.box_head, network.classifier):
        part.to(dtype)
    return network.eval().requires_grad_(False)
