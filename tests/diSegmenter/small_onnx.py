"""Small ONNX networks, and files that only look like one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, OPSET, IR = TensorProto.FLOAT, 17, 8
Shape = Sequence[int | str]


def save_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[Shape, int]] = ((("batch", 3, "height", "width"), FLOAT),),
    outputs: Sequence[str] = ("scores",),
    numbers: Sequence[onnx.TensorProto] = (),
    output_type: int = FLOAT,
) -> str:
    """Writes a network with the inputs ``pixels``, ``input1``, … of these shapes and types."""
    names = ["pixels", *(f"input{n}" for n in range(1, len(inputs)))][: len(inputs)]
    given = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, (shape, kind) in zip(names, inputs, strict=True)
    ]
    results = [helper.make_tensor_value_info(name, output_type, None) for name in outputs]
    graph = helper.make_graph(nodes, "small", given, results, numbers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return str(path)


def save_dark(path: Path, shape: Shape = ("batch", 3, "height", "width"), kind: int = FLOAT) -> str:
    """The foreground network of ``small_models.py``: what is darker than the white paper around it."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    numbers = [
        numpy_helper.from_array(np.array(value, dtype), name)
        for name, value in (("grey", 1.5), ("slope", -8))
    ]
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["mean", "grey"], ["darkness"]),
        helper.make_node("Mul", ["darkness", "slope"], ["scores"]),
    ]
    return save_onnx(path, nodes, [(shape, kind)], numbers=numbers, output_type=kind)


def save_channels(path: Path, shape: Shape = ("batch", 3, "height", "width")) -> str:
    """Its three outputs are its input's channels: what it sees is its mask."""
    split = helper.make_node("Split", ["pixels"], ["red", "green", "blue"], axis=1)
    return save_onnx(path, [split], [(shape, FLOAT)], ("red", "green", "blue"))


def save_with_data_at(path: Path, location: str) -> str:
    """A network (1, 3, 4, 4) to (1, 1, 4, 4) whose 48 weights are read from the file ``location``."""
    weights = TensorProto(name="w", dims=[1, 3, 4, 4], data_type=FLOAT)
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(48 * 4))):
        weights.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("Mul", ["pixels", "w"], ["weighted"]),
        helper.make_node("ReduceMean", ["weighted"], ["scores"], axes=[1], keepdims=1),
    ]
    return save_onnx(path, nodes, [((1, 3, 4, 4), FLOAT)], numbers=[weights])


def save_weights(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.ones(48, np.float32).tofile(path)
