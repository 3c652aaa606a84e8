"""Inference engines: one class per engine behind one small interface.

An engine runs the network of a bundle on uint8 batches of one fixed shape. `load_engine` makes the
engine that an `EnginePlan` names; `Embedder` is its only caller in the pipeline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx.experimental.optimization import fuse

from retrieval.core.errors import UsageError
from retrieval.core.records import Transform
from retrieval.models.bundle import Bundle
from retrieval.models.engine_plan import OPENVINO, EnginePlan
from retrieval.models.openvino import IR, Shape, compile_ir, convert_network, openvino_core

Vectors = NDArray[np.float32]


class Engine(Protocol):
    """Runs a network on batches of the one shape that the engine was made for."""

    ahead: int
    """Batches that may be in flight before the result of the first must be taken."""

    def next_buffer(self) -> NDArray[np.uint8]:
        """Return a uint8 array (batch, 3, side, side) to fill with the next batch.

        Its contents are undefined; it may be the array returned `ahead` + 1 calls before.
        """
        ...

    def submit(self, pixels: NDArray[np.uint8]) -> Callable[[], Vectors]:
        """Start a batch in the array of `next_buffer`; calling the result waits for (batch, d).

        Results must be taken in the order in which batches were submitted.
        """
        ...


class OpenVINOEngine:
    """OpenVINO on a CPU; batches run synchronously."""

    ahead = 0

    def __init__(self, ir: IR, precision: str, shape: Shape, *, threads: int) -> None:
        self._ir = ir  # OpenVINO keeps reading this memory
        self._request: Any = compile_ir(ir, precision, threads)
        self._pixels = np.zeros(shape, np.uint8)

    def next_buffer(self) -> NDArray[np.uint8]:
        """Return the same array each time: a batch is finished when `submit` returns."""
        return self._pixels

    def submit(self, pixels: NDArray[np.uint8]) -> Callable[[], Vectors]:
        """Run a batch to completion."""
        vectors = np.array(self._request.infer([pixels], share_inputs=True)[0], np.float32)
        return lambda: vectors


class TorchEngine:
    """PyTorch, channels last, on a CPU or a GPU.

    On a GPU a batch is copied, normalised and embedded there while the next one is decoded.
    """

    def __init__(
        self, network: NormalisedNetwork, plan: EnginePlan, shape: Shape, passes: int = 1
    ) -> None:
        self._device = torch.device(plan.device)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[plan.precision]
        on_gpu = plan.device == "cuda"
        if on_gpu:
            _set_deterministic_gpu()
        self.ahead = 2 * passes - 1 if on_gpu else 0
        cast_network = network.cast_parameters(self._dtype).to(memory_format=torch.channels_last)
        self._network = cast_network.to(self._device)
        arrays = [torch.zeros(shape, dtype=torch.uint8) for _ in range(self.ahead + 1)]
        # asynchronous copies to a GPU need pinned memory
        self._arrays = cycle([a.pin_memory() if on_gpu else a for a in arrays])

    def next_buffer(self) -> NDArray[np.uint8]:
        """Return the next of `ahead` + 1 arrays, in turn."""
        pixels: NDArray[np.uint8] = next(self._arrays).numpy()
        return pixels

    def submit(self, pixels: NDArray[np.uint8]) -> Callable[[], Vectors]:
        """Start a batch; on a GPU this returns before the batch is finished."""
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self._device, non_blocking=True)
            vectors = self._network(batch)
        return lambda: vectors.float().cpu().numpy()


def _set_deterministic_gpu() -> None:
    """Make GPU results deterministic, and compute fp32 without TF32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class NormalisedNetwork(nn.Module):
    """A network that normalises uint8 images itself, so that batches are copied as uint8."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, body: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(transform.std).view(3, 1, 1) * 255))
        self.dtype = torch.float32

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 (n, 3, side, side) as (n, d); pixels are always normalised in float32."""
        images = ((pixels.float() - self.mean) * self.scale).to(self.dtype)
        vectors: torch.Tensor = self.body(images.contiguous(memory_format=torch.channels_last))
        return vectors

    def cast_parameters(self, dtype: torch.dtype) -> NormalisedNetwork:
        """Cast the parameters to `dtype` in place and return the module."""
        self.body = self.body.to(dtype)
        self.dtype = dtype
        return self


def build_network(bundle: Bundle) -> NormalisedNetwork:
    """Build the network of a bundle, without its projection, batch norms folded into convolutions.

    Folding saves 10 % to 67 % of the time of a forward pass in torch, and half of a conversion.
    """
    from retrieval.models.registry import (
        build_extractor,  # imports torchvision, which OpenVINO workers do not need
        check_code,
    )

    check_code(bundle.backbone, bundle.code)
    body: nn.Module = build_extractor(bundle.backbone, bundle.state(), bundle.pooling)
    with contextlib.suppress(Exception):  # a network that cannot be traced again runs unfused
        body = fuse(body)
    return NormalisedNetwork(body, bundle.transform).eval()


def batch_shape(bundle: Bundle, plan: EnginePlan) -> Shape:
    """Return the shape (batch, 3, side, side) of all batches of a bundle under a plan."""
    side = bundle.transform.image_size
    return plan.batch_size, 3, side, side


def convert_bundle(bundle: Bundle, plan: EnginePlan) -> IR:
    """Convert the network of a bundle for OpenVINO; the driver does this once for all workers.

    Raises `ConversionFailed`.
    """
    if bundle.is_onnx:
        from retrieval.models.openvino_onnx import convert_onnx

        shape = batch_shape(bundle, plan)
        return convert_onnx(bundle.weights, bundle.backbone, bundle.transform, shape)
    return convert_network(build_network(bundle), batch_shape(bundle, plan))


def check_processor(plan: EnginePlan) -> None:
    """Raise UsageError if the plan requires bf16 on a processor without bf16 arithmetic.

    Emulated bf16 is many times slower than fp32.
    """
    if plan.precision != "bf16":
        return
    if plan.device == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif plan.engine == OPENVINO:
        supported = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    else:
        # torch has no public name for this check
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    if not supported:
        raise UsageError(f"--precision bf16: the {plan.device} has no bf16 arithmetic; use fp32")


def load_engine(
    bundle: Bundle, plan: EnginePlan, ir: IR | None = None, *, threads: int, passes: int = 1
) -> Engine:
    """Load the engine of a plan, ready to run.

    `ir` is the network converted for OpenVINO; without it the conversion happens here. `threads`
    applies to the engine and to torch, which resizes images in the same process. `passes` is the
    number of batches that are submitted for the same images.
    """
    check_processor(plan)
    torch.set_num_threads(threads)
    if plan.engine == OPENVINO:
        ir = ir or convert_bundle(bundle, plan)
        return OpenVINOEngine(ir, plan.precision, batch_shape(bundle, plan), threads=threads)
    return TorchEngine(build_network(bundle), plan, batch_shape(bundle, plan), passes)
