"""How networks are run: engine, precision, device and batch, decided once and without a stopwatch.

The plan stands in job.json before the first chunk, since all of it shapes the last bits of a
vector. Neither torch nor an engine is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from retrieval.core.errors import UsageError

OPENVINO, TORCH = "openvino", "torch"
BATCH_CPU, BATCH_GPU = 2, 256
"""Images a forward pass: small batches stay in a CPU's caches, large ones fill a GPU."""


@dataclass(frozen=True)
class EnginePlan:
    """What runs the network of a store's bundle, and on batches of which size."""

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
    """Fill in what was not asked for, and refuse what does not go together.

    `gpus` tells whether the cluster has any. The default is a GPU where there is one, with torch in
    bf16; on CPUs OpenVINO in fp32, or torch where OpenVINO is not installed.
    """
    if engine == OPENVINO and device == "cuda":
        raise UsageError("--engine openvino runs on CPUs; use --engine torch with --device cuda")
    if engine == OPENVINO and not openvino_installed():
        raise UsageError(
            "--engine openvino is not installed; pip install openvino, or use --engine torch"
        )
    if device == "cuda" and not gpus:
        raise UsageError("--device cuda: no GPU is there; use --device cpu")
    device = device or ("cuda" if gpus and engine != OPENVINO else "cpu")
    if engine is None:
        engine = OPENVINO if device == "cpu" and openvino_installed() else TORCH
    precision = precision or ("bf16" if device == "cuda" else "fp32")
    return EnginePlan(
        engine, precision, device, batch_size or (BATCH_GPU if device == "cuda" else BATCH_CPU)
    )


def openvino_installed() -> bool:
    """Tell whether the package is there, without importing it."""
    return find_spec(OPENVINO) is not None
