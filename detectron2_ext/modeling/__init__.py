"""The network: CenterNet2 on torch, torchvision, timm and fvcore."""

from detectron2_ext.modeling.builder import build_detector, build_model, load_feedback_network
from detectron2_ext.modeling.feedback_network import FeedbackNetwork
from detectron2_ext.modeling.weights import LoadReport, load_weights

__all__ = [
    "FeedbackNetwork",
    "LoadReport",
    "build_detector",
    "build_model",
    "load_feedback_network",
    "load_weights",
]
