"""The network: CenterNet2 on torch, torchvision, timm and fvcore."""

from detectron2_ext.modeling.builder import build_model
from detectron2_ext.modeling.checkpoint import LoadReport, load_weights
from detectron2_ext.modeling.feedback_network import FeedbackNetwork, load_feedback_network

__all__ = ["FeedbackNetwork", "LoadReport", "build_model", "load_feedback_network", "load_weights"]
