"""A matting network of torch as ONNX."""

import torch
from torch import nn


class _LastOutput(nn.Module):
    """What MattingForeground takes of a network's outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs = self.network(pixels)
        return outputs if isinstance(outputs, torch.Tensor) else outputs[-1]


def as_onnx(network: nn.Module, input_size: int) -> bytes:
    """``network`` as an ONNX file: float32 images (batch, 3, S, S), normalised, to scores (batch, 1, S', S').

    Args:
        network: see ``MattingForeground``.
        input_size: S, in pixels; the batch may be any.
    """
    program = torch.onnx.export(
        _LastOutput(network).eval(),
        (torch.zeros(2, 3, input_size, input_size),),
        input_names=["pixels"],
        output_names=["scores"],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
        verbose=False,
    )
    return program.model_proto.SerializeToString()
