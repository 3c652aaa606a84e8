"""Networks of ONNX files, run by OpenVINO: no torch, and no code of the file's author.

Beside `openvino.py` the only module that imports openvino.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.core.errors import UsageError
from retrieval.core.records import Transform
from retrieval.models.openvino import (
    IR,
    TOLERANCE,
    ConversionFailed,
    Shape,
    compile_ir,
    failure_reason,
    openvino_core,
    save_ir,
)


@dataclass(frozen=True)
class OnnxInput:
    """The input of an ONNX network: images of `image_size`, which is None if it takes any size."""

    image_size: int | None
    layout: str  # NCHW or NHWC


def describe_input(data: bytes, name: str) -> OnnxInput:
    """Return the input of an ONNX network.

    Raises UsageError unless it has one input, of square RGB images.
    """
    model = _read(data, name)
    shapes = [node.partial_shape for node in model.inputs]
    if len(shapes) != 1 or shapes[0].rank.is_dynamic or len(shapes[0]) != 4:
        inputs = ", ".join(f"{_name(node)} {node.partial_shape}" for node in model.inputs)
        raise UsageError(
            f"--backbone {name} has the inputs {inputs or 'none'}; export it with one input, "
            "images (n, 3, height, width)"
        )
    sizes = [None if size.is_dynamic else size.get_length() for size in shapes[0]]
    layout = "NHWC" if sizes[1] != 3 and sizes[3] == 3 else "NCHW"
    channels, height, width = (sizes[layout.index(axis)] for axis in "CHW")
    if channels not in (3, None) or (height or width) != (width or height):
        raise UsageError(
            f"--backbone {name} reads {shapes[0]}, not square images of three channels"
        )
    return OnnxInput(height or width, layout)


def convert_onnx(data: bytes, name: str, transform: Transform, shape: Shape) -> IR:
    """Return the network for uint8 batches of one shape, normalised as `transform` states.

    A feature map is averaged over its positions. Raises ConversionFailed if OpenVINO cannot run the
    network, or images of a batch influence one another; UsageError if it does not return one vector
    or one map per image.
    """
    try:
        ir = _convert(data, name, transform, shape)
        noise = np.random.default_rng(0).integers(0, 256, (2, *shape[1:]), np.uint8)
        batch = np.resize(noise, shape)
        vectors = np.asarray(compile_ir(ir, "fp32", 1).infer([batch])[0])
        single_ir = _convert(data, name, transform, (1, *shape[1:]))  # must outlive its request
        single = compile_ir(single_ir, "fp32", 1)
        expected = np.concatenate(
            [np.array(single.infer([batch[row : row + 1]])[0]) for row in (0, shape[0] - 1)]
        )
    except UsageError:
        raise
    except Exception as error:
        raise ConversionFailed(failure_reason(error)) from error
    if not np.isfinite(expected).all():
        raise ConversionFailed("its vectors are not finite")
    difference = np.abs(vectors[[0, -1]] - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not difference <= TOLERANCE:
        raise ConversionFailed(
            f"its vectors depend on the batch, by {difference:.1g}; use --batch-size 1"
        )
    return ir


def measure_onnx_dimension(ir: IR) -> int:
    """Return the length of the vectors of a converted network."""
    request = compile_ir(ir, "fp32", 1)
    return int(request.get_compiled_model().output().shape[1])


def count_onnx_parameters(data: bytes, name: str) -> int:
    """Return the number of constants of an ONNX network that are not whole numbers."""
    constants = [node for node in _read(data, name).get_ops() if not node.get_input_size()]
    values = [node.output(0) for node in constants if node.get_type_name() == "Constant"]
    return sum(
        int(np.prod(tuple(value.get_shape()))) for value in values
        if value.get_element_type().is_real()
    )  # fmt: skip


def _convert(data: bytes, name: str, transform: Transform, shape: Shape) -> IR:
    openvino_core()  # before anything else imports openvino
    import openvino
    from openvino.preprocess import PrePostProcessor

    layout = describe_input(data, name).layout
    model = _with_single_output(_read(data, name), name, layout)
    sizes = dict(zip("NCHW", shape, strict=True))
    model.reshape([sizes[axis] for axis in layout])
    steps = PrePostProcessor(model)
    tensor = steps.input().tensor()
    tensor.set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NCHW"))
    steps.input().model().set_layout(openvino.Layout(layout))
    process = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    process.mean([value * 255 for value in transform.mean])
    process.scale([value * 255 for value in transform.std])
    steps.output().tensor().set_element_type(openvino.Type.f32)
    model = steps.build()
    output = model.output().partial_shape
    if output.is_dynamic or output[0].get_length() != shape[0]:
        raise ConversionFailed(f"batches of {shape[0]} become {output}; use --batch-size 1")
    return save_ir(model)


def _with_single_output(model: Any, name: str, layout: str) -> Any:
    """Return the network with its vectors (n, d) as only output.

    Of several outputs the only one of two axes is taken, else the only map, which is averaged.
    """
    import openvino
    from openvino import opset13

    for rank in (2, 4):
        outputs = [
            node for node in model.outputs
            if node.partial_shape.rank.is_static and len(node.partial_shape) == rank
        ]  # fmt: skip
        if len(outputs) == 1:
            node = outputs[0].get_node().input_value(0)
            if rank == 4:
                axes = [layout.index(axis) for axis in "HW"]
                node = opset13.reduce_mean(node, opset13.constant(axes, np.int64), False).output(0)
            return openvino.Model([opset13.result(node)], model.get_parameters(), "network")
    names = ", ".join(f"{_name(node)} {node.partial_shape}" for node in model.outputs)
    raise UsageError(
        f"--backbone {name} has the outputs {names}; export it with one output, vectors (n, d) or "
        "a feature map (n, c, height, width)"
    )


def _read(data: bytes, name: str) -> Any:
    """Parse an ONNX file that names no other files (`onnx_file.py`)."""
    try:
        return openvino_core().read_model(model=data, weights=b"")
    except Exception as error:
        raise UsageError(
            f"--backbone {name} cannot be read by OpenVINO ({failure_reason(error)}); export it "
            "again, with a lower opset"
        ) from error


def _name(node: Any) -> str:
    return min(node.get_names(), default="without a name")
