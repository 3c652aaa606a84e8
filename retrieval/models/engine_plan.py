"""Selection of the inference engine, its precision, device and batch size.

The plan is decided once, from options and installed packages alone, and recorded in job.json before
the first chunk, because all of it shapes the last bits of a vector. Neither torch nor an engine is
imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from retrieval.core.errors import UsageError

OPENVINO, TORCH = "openvino", "torch"
BATCH_CPU, BATCH_GPU = 2, 256
"""Images per forward pass: small batches stay in the CPU caches, large ones fill a GPU."""


@dataclass(frozen=True)
class EnginePlan:
    """How the network of a bundle is run: engine, precision, device and batch size."""

    engine: str  # openvino or torch
    precision: str  # fp32 or bf16
    device: str  # cpu or cuda
    batch_size: int


def plan_engine(
    engine: str | None,
    precision: str | None,
    device: str | None,
    batch_size: int | None,
    *,
    gpus: bool,
) -> EnginePlan:
    """Complete the engine options with defaults and reject invalid combinations.

    `gpus` says whether the cluster has GPUs. Default: torch in bf16 on a GPU if there is one; else
    OpenVINO in fp32 on CPUs, or torch if OpenVINO is not installed. Raises UsageError.
    """
    if engine == OPENVINO and device == "cuda":
        raise UsageError("--engine openvino runs on CPUs; use --engine torch with --device cuda")
    if engine == OPENVINO and not openvino_installed():
        raise UsageError(
            "--engine openvino: the package is not installed; pip install openvino, or use "
            "--engine torch"
        )
    if device == "cuda" and not gpus:
        raise UsageError("--device cuda: no GPU was found; use --device cpu")
    device = device or ("cuda" if gpus and engine != OPENVINO else "cpu")
    if engine is None:
        engine = OPENVINO if device == "cpu" and openvino_installed() else TORCH
    precision = precision or ("bf16" if device == "cuda" else "fp32")
    return EnginePlan(
        engine, precision, device, batch_size or (BATCH_GPU if device == "cuda" else BATCH_CPU)
    )


def openvino_installed() -> bool:
    """Return whether the openvino package is installed, without importing it."""
    return find_spec(OPENVINO) is not None
