"""What runs a network on batches of one fixed shape: a class an engine, one small interface."""

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
from retrieval.models.openvino import IR, Shape, compile_ir, convert, core

Vectors = NDArray[np.float32]


class Engine(Protocol):
    """Runs a network; batches have the one shape that the engine was made for."""

    ahead: int
    """Batches that may be under way before the answer of the first has to be taken."""

    def blank(self) -> NDArray[np.uint8]:
        """Give an array (batch, 3, side, side) for the next batch; what it holds is of no meaning.

        It may be the one that was given `ahead` + 1 batches before.
        """
        ...

    def submit(self, pixels: NDArray[np.uint8]) -> Callable[[], Vectors]:
        """Begin a batch in the array that `blank` gave; the answer, (batch, d), is taken later.

        Answers are taken in the order of the batches.
        """
        ...


class OpenVINOEngine:
    """OpenVINO on a CPU."""

    ahead = 0

    def __init__(self, ir: IR, precision: str, shape: Shape, *, threads: int) -> None:
        self._ir = ir  # OpenVINO goes on reading its memory
        self._request: Any = compile_ir(ir, precision, threads)
        self._pixels = np.zeros(shape, np.uint8)

    def blank(self) -> NDArray[np.uint8]:
        """Give the one array: a batch is done when `submit` returns."""
        return self._pixels

    def submit(self, pixels: NDArray[np.uint8]) -> Callable[[], Vectors]:
        """Run a batch to its end."""
        vectors = np.array(self._request.infer([pixels], share_inputs=True)[0], np.float32)
        return lambda: vectors


class TorchEngine:
    """PyTorch, channels last, on a CPU or a GPU.

    On a GPU a batch is copied, normalised and embedded there while the next one is decoded.
    """

    def __init__(self, network: Normalised, plan: EnginePlan, shape: Shape) -> None:
        self._device = torch.device(plan.device)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[plan.precision]
        on_gpu = plan.device == "cuda"
        if on_gpu:
            _exact_gpu()
        self.ahead = 1 if on_gpu else 0
        narrow = network.narrowed(self._dtype).to(memory_format=torch.channels_last)
        self._network = narrow.to(self._device)
        arrays = [torch.zeros(shape, dtype=torch.uint8) for _ in range(self.ahead + 1)]
        # what a GPU copies while the CPU goes on has to lie in memory that stays in its place
        self._arrays = cycle([a.pin_memory() if on_gpu else a for a in arrays])

    def blank(self) -> NDArray[np.uint8]:
        """Give one of the arrays in turn."""
        pixels: NDArray[np.uint8] = next(self._arrays).numpy()
        return pixels

    def submit(self, pixels: NDArray[np.uint8]) -> Callable[[], Vectors]:
        """Begin a batch; on a GPU this returns before it is done."""
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self._device, non_blocking=True)
            vectors = self._network(batch)
        return lambda: vectors.float().cpu().numpy()


def _exact_gpu() -> None:
    """Let a GPU compute the same bits each time, and fp32 in fp32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class Normalised(nn.Module):
    """A network from uint8 images to pooled vectors; batches travel as uint8."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, body: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(transform.std).view(3, 1, 1) * 255))
        self.dtype = torch.float32

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 (n, 3, side, side) as (n, d); normalised in float32 in any case."""
        images = ((pixels.float() - self.mean) * self.scale).to(self.dtype)
        vectors: torch.Tensor = self.body(images.contiguous(memory_format=torch.channels_last))
        return vectors

    def narrowed(self, dtype: torch.dtype) -> Normalised:
        """Bring the parameters to `dtype`."""
        self.body = self.body.to(dtype)
        self.dtype = dtype
        return self


def network_of(bundle: Bundle) -> Normalised:
    """Give the network of a bundle, without its projection; batch norms folded into convolutions.

    Folding is worth a tenth to two thirds in torch, and half of the time of a conversion.
    """
    from retrieval.models.registry import extractor  # torchvision: workers on OpenVINO need none

    body: nn.Module = extractor(bundle.backbone, bundle.state(), bundle.pooling)
    with contextlib.suppress(Exception):  # what cannot be traced again runs as it is
        body = fuse(body)
    return Normalised(body, bundle.transform).eval()


def shape_of(bundle: Bundle, plan: EnginePlan) -> Shape:
    """Give the one shape of this bundle's batches."""
    side = bundle.transform.image_size
    return plan.batch_size, 3, side, side


def convert_bundle(bundle: Bundle, plan: EnginePlan) -> IR:
    """Make what OpenVINO reads; once, by the driver. Raises `Unfit`."""
    return convert(network_of(bundle), shape_of(bundle, plan))


def check_processor(plan: EnginePlan) -> None:
    """Refuse bf16 where this machine would only imitate it, many times slower than fp32."""
    if plan.precision != "bf16":
        return
    if plan.device == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    elif plan.engine == OPENVINO:
        able = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    else:
        able = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - torch has no public name
    if not able:
        raise UsageError(f"--precision bf16: the {plan.device} has no bf16 arithmetic; use fp32")


def load_engine(bundle: Bundle, plan: EnginePlan, ir: IR | None = None, *, threads: int) -> Engine:
    """Make an engine that is ready to run; without `ir` what OpenVINO reads is made here.

    `threads` are those of the engine, and of torch's resizing beside it.
    """
    check_processor(plan)
    torch.set_num_threads(threads)
    if plan.engine == OPENVINO:
        ir = ir or convert_bundle(bundle, plan)
        return OpenVINOEngine(ir, plan.precision, shape_of(bundle, plan), threads=threads)
    return TorchEngine(network_of(bundle), plan, shape_of(bundle, plan))
