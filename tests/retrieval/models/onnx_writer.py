"""A writer of small ONNX files for tests: protobuf messages of onnx.proto, field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

FLOAT, INT64 = 1, 7  # TensorProto.DataType


def varint(value: int) -> bytes:
    encoded = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, *parts: bytes | str) -> bytes:
    content = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(name: str, array: np.ndarray, external: Mapping[str, str] | None = None) -> bytes:
    """Return the fields of a TensorProto; `external` are its entries instead of the data."""
    fields = [number(1, size) for size in array.shape]
    fields += [number(2, FLOAT if array.dtype == np.float32 else INT64), message(8, name)]
    if external is None:
        return b"".join([*fields, message(9, array.tobytes())])
    fields += [message(13, message(1, key), message(2, value)) for key, value in external.items()]
    return b"".join([*fields, number(14, 1)])


def node(operation: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    """Return the fields of a NodeProto."""
    names = [message(1, name) for name in inputs]
    return b"".join(
        [*names, message(2, output), message(3, output), message(4, operation), *attributes]
    )


def integers(name: str, values: Sequence[int]) -> bytes:
    """Return an attribute of integers, as a field of a node."""
    return message(5, message(1, name), *(number(8, value) for value in values), number(20, 7))


def constant(name: str, content: bytes) -> bytes:
    """Return the attribute `value` of a tensor, as a field of a Constant node."""
    return message(5, message(1, name), message(5, content), number(20, 4))


def value(name: str, shape: Sequence[int | str]) -> bytes:
    """Return the fields of a ValueInfoProto of floats; a text is a dynamic axis."""
    axes = [
        message(1, number(1, size) if isinstance(size, int) else message(2, size)) for size in shape
    ]
    return message(1, name) + message(2, message(1, number(1, FLOAT), message(2, *axes)))


def model(
    nodes: Sequence[bytes],
    tensors: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
) -> bytes:
    """Return a ModelProto of opset 17."""
    graph = [message(1, content) for content in nodes]
    graph += [message(2, "network"), *(message(5, content) for content in tensors)]
    graph += [message(11, content) for content in inputs]
    graph += [message(12, content) for content in outputs]
    return number(1, 8) + message(8, message(1, ""), number(2, 17)) + message(7, *graph)


def small_network(
    weight: np.ndarray,
    *,
    shape: Sequence[int | str] = ("n", 3, 32, 32),
    external: Mapping[str, str] | None = None,
    output: str = "vectors",
) -> bytes:
    """Return a network: a convolution with `weight` (c, 3, k, k), stride k, relu, mean, flatten."""
    channels, _, side, _ = weight.shape
    nodes = [
        node("Conv", ["images", "weight"], "convolved", integers("strides", [side, side])),
        node("Relu", ["convolved"], "map"),
        node("GlobalAveragePool", ["map"], "pooled"),
        node("Flatten", ["pooled"], "vectors"),
    ]
    shapes = {"vectors": ["n", channels], "map": ["n", channels, "h", "w"]}
    return model(
        nodes, [tensor("weight", weight, external)], [value("images", shape)],
        [value(name, shapes[name]) for name in output.split(",")],
    )  # fmt: skip
