"""Conversion of torch modules to OpenVINO; with `openvino_onnx.py` all that imports openvino.

The driver converts a network once and passes the intermediate representation (IR) to all workers,
so that these neither trace nor convert.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Shape = tuple[int, int, int, int]

TOLERANCE = 1e-3
"""Accepted difference from torch, relative to the largest component of a vector; correct
conversions differ by about 1e-6, wrong ones by far more."""


class ConversionFailed(Exception):
    """OpenVINO cannot run this network, or computes other vectors than torch."""


@dataclass(frozen=True)
class IR:
    """Intermediate representation of a network: its graph, and its parameters as raw bytes."""

    graph: bytes
    weights: NDArray[np.uint8]


@cache
def openvino_core() -> Any:
    """Return OpenVINO's Core; its telemetry is never loaded, so nothing is sent anywhere."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def compile_ir(ir: IR, precision: str, threads: int) -> Any:
    """Compile for this machine's CPU and return an OpenVINO infer request.

    The parameters are not copied: `ir` must outlive the request. The precision is set explicitly,
    because OpenVINO would choose bf16 by itself on a CPU that has it.
    """
    import openvino

    weights = openvino.Tensor(ir.weights, shape=[ir.weights.size], type=openvino.Type.u8)
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }
    model = openvino_core().read_model(model=ir.graph, weights=weights)
    return openvino_core().compile_model(model, "CPU", settings).create_infer_request()


def convert_network(network: nn.Module, shape: Shape) -> IR:
    """Convert a network that reads uint8 batches of one shape, and compare its output with torch.

    Raises ConversionFailed if it cannot be converted or its vectors differ.
    """
    noise = np.random.default_rng(0).integers(0, 256, shape[1:], np.uint8)
    try:
        ir = _convert(network, shape)
        batch = np.broadcast_to(noise, shape).copy()
        vectors = np.asarray(compile_ir(ir, "fp32", 1).infer([batch])[0])
    except Exception as error:
        raise ConversionFailed(failure_reason(error)) from error
    with torch.inference_mode():
        expected = network(torch.from_numpy(noise[None])).numpy()
    difference = np.abs(vectors - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not difference <= TOLERANCE:
        raise ConversionFailed(f"its vectors differ from torch by {difference:.1g}")
    return ir


def failure_reason(error: Exception) -> str:
    """Return class and first 200 characters of an error of OpenVINO or torch."""
    # the text after "Summary: " names the unsupported operation
    reason = " ".join(str(error).split()).rsplit("Summary: ", 1)[-1]
    return f"{type(error).__name__}: {reason[:200]}"


def _convert(network: nn.Module, shape: Shape) -> IR:
    openvino_core()  # before anything else imports openvino
    import openvino

    with torch.no_grad():
        example = torch.zeros(shape, dtype=torch.uint8)
        exported = torch.export.export(network, (example,))
        model = openvino.convert_model(exported)
    return save_ir(model)


def save_ir(model: Any) -> IR:
    """Return the IR of an OpenVINO model, with parameters of 32 bits."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "network.xml")
        openvino.save_model(model, graph, compress_to_fp16=False)
        weights = np.fromfile(graph.with_suffix(".bin"), np.uint8)
        return IR(graph.read_bytes(), weights)
