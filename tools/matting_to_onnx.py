"""A matting network of torch as ONNX."""

import torch
from torch import nn

from exchange.errors import UserError


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

    Raises:
        UserError: torch cannot export it.
    """
    try:
        program = torch.onnx.export(
            _LastOutput(network).eval(),
            (torch.zeros(2, 3, input_size, input_size),),
            input_names=["pixels"],
            output_names=["scores"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
        model = program.model_proto
        if not model.graph.output[0].type.tensor_type.shape.dim[0].dim_param:
            raise torch.onnx.OnnxExporterError(
                "for one size of batch alone"
            )  # which torch 2.8 does not raise
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"torch cannot export the network {type(network).__name__} for batches of any size at {input_size} x "
            f"{input_size} pixels ({type(error.__cause__ or error).__name__}): correct SEGMENTER.INPUT_SIZE, or take a "
            "published ONNX file"
        ) from error
    return model.SerializeToString()
