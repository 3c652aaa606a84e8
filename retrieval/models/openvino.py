"""From a torch module to what OpenVINO runs; the only file that knows how OpenVINO is imported.

The driver converts a network once and hands all workers the outcome, its intermediate
representation, so that they neither trace nor convert.
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

_TOLERANCE = 1e-3
"""Of the largest number of a vector; converted networks differ from torch by 1e-6 or so, and a
wrong one by far more."""


class Unfit(Exception):
    """The engine does not take this network."""


@dataclass(frozen=True)
class IR:
    """A network as OpenVINO reads it: its graph, and its parameters as raw bytes."""

    graph: bytes
    weights: NDArray[np.uint8]


@cache
def core() -> Any:
    """Give OpenVINO's entrance; its telemetry is never loaded, so nothing is sent anywhere."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def compile_ir(ir: IR, precision: str, threads: int) -> Any:
    """Compile for this machine's CPU; gives an OpenVINO infer request.

    The parameters are not copied: `ir` must live as long as the request does. The precision is
    said, since OpenVINO would choose bf16 by itself where the CPU has it.
    """
    import openvino

    weights = openvino.Tensor(ir.weights, shape=[ir.weights.size], type=openvino.Type.u8)
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }
    model = core().read_model(model=ir.graph, weights=weights)
    return core().compile_model(model, "CPU", settings).create_infer_request()


def convert(network: nn.Module, shape: Shape) -> IR:
    """Convert a network that reads uint8 batches of one shape, and see that it answers as torch.

    Raises Unfit where it cannot be converted, or answers otherwise.
    """
    noise = np.random.default_rng(0).integers(0, 256, shape[1:], np.uint8)
    try:
        ir = _convert(network, shape)
        batch = np.broadcast_to(noise, shape).copy()
        answer = np.asarray(compile_ir(ir, "fp32", 1).infer([batch])[0])
    except Exception as error:
        said = " ".join(str(error).split()).rsplit("Summary: ", 1)[-1]  # after it: which operation
        raise Unfit(f"{type(error).__name__}: {said[:200]}") from error
    with torch.inference_mode():
        expected = network(torch.from_numpy(noise[None])).numpy()
    apart = np.abs(answer - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not apart <= _TOLERANCE:
        raise Unfit(f"its answer differs by {apart:.1g}")
    return ir


def _convert(network: nn.Module, shape: Shape) -> IR:
    core()  # before anything else imports openvino
    import openvino

    with torch.no_grad():
        example = torch.zeros(shape, dtype=torch.uint8)
        exported = torch.export.export(network, (example,))
        model = openvino.convert_model(exported)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "network.xml")
        openvino.save_model(model, graph, compress_to_fp16=False)
        weights = np.fromfile(graph.with_suffix(".bin"), np.uint8)
        return IR(graph.read_bytes(), weights)
