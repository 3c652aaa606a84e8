"""Measure each inference engine on one small network of every torchvision family.

One thread, batches of 2, random weights. Rates are images per second of processor time, which other
load affects less, relative to eager torch in fp32. The error is the largest difference from torch
over the largest component. ONNX Runtime, the baseline, is optional: pip install onnxruntime onnx
onnxscript.

    python -m benchmarks.engines [--backbones a,b,c]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks.output import write_result
from retrieval.core.errors import UsageError
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.engines import build_network, check_processor, convert_bundle, load_engine
from retrieval.models.registry import build_extractor
from retrieval.models.resolve import resolve_bundle

FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
BATCH = 2
SECONDS = 1.0  # processor time of each measurement
OURS = (("openvino", "fp32"), ("openvino", "bf16"), ("torch", "fp32"), ("torch", "bf16"))


def main() -> None:
    """Measure each family; print its figures, then all results with geometric means as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbones")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = arguments.backbones.split(",") if arguments.backbones else FAMILIES
    backbones = []
    for name in names:
        backbones.append(_measure(name))
        print(json.dumps(backbones[-1]), file=sys.stderr, flush=True)
    ratios = {key for figures in backbones for key in figures if key.endswith("_ratio")}
    means = {
        key: round(
            statistics.geometric_mean(figures[key] for figures in backbones if key in figures), 2
        )
        for key in sorted(ratios)
    }
    write_result("engines", batch_size=BATCH, backbones=backbones, geometric_means=means)


def _measure(name: str) -> dict[str, Any]:
    bundle = resolve_bundle(
        backbone=name, weights="random", bundle=None, pooling="avg", normalize=False,
        image_size=None, resize="crop", seed=0,
    )  # fmt: skip
    side = bundle.transform.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, side, side), np.uint8)
    eager = _eager(bundle, pixels)
    figures: dict[str, Any] = {"backbone": name, "eager": round(_rate(eager), 1)}
    expected = eager()
    started = time.process_time()
    ir = convert_bundle(bundle, EnginePlan("openvino", "fp32", "cpu", BATCH))
    figures["openvino_convert_seconds"] = round(time.process_time() - started, 1)
    for engine, precision in OURS:
        plan = EnginePlan(engine, precision, "cpu", BATCH)
        with contextlib.suppress(UsageError):  # no bf16 on this processor
            check_processor(plan)
            loaded = load_engine(bundle, plan, ir, threads=1)
            run = _running(loaded, pixels)
            figures |= _compare(f"{engine}_{precision}", run, figures, expected)
    if find_spec("onnxruntime"):
        started = time.process_time()
        run = _onnxruntime(bundle, pixels)
        figures["onnxruntime_convert_seconds"] = round(time.process_time() - started, 1)
        figures |= _compare("onnxruntime_fp32", run, figures, expected)
    return figures


def _compare(
    key: str, run: Callable[[], Any], figures: dict[str, Any], expected: Any
) -> dict[str, Any]:
    error = np.abs(run() - expected).max() / np.abs(expected).max()
    return {
        f"{key}_ratio": round(_rate(run) / figures["eager"], 2),
        f"{key}_error": float(f"{error:.0e}"),
    }


def _running(engine: Any, pixels: Any) -> Callable[[], Any]:
    return lambda: engine.submit(pixels)()  # noqa: PLW0108 - submits a new batch at each call


def _rate(run: Callable[[], Any]) -> float:
    run()
    count, started = 0, time.process_time()
    while time.process_time() - started < SECONDS or count < 2:
        run()
        count += 1
    return BATCH * count / (time.process_time() - started)


def _eager(bundle: Any, pixels: Any) -> Callable[[], Any]:
    """Return a function that runs eager torch: batch norms not folded, default memory layout."""
    network = build_extractor(bundle.backbone, bundle.state(), bundle.pooling)
    mean = torch.tensor(bundle.transform.mean).view(3, 1, 1)
    std = torch.tensor(bundle.transform.std).view(3, 1, 1)

    def run() -> Any:
        with torch.inference_mode():
            return network((torch.from_numpy(pixels) / 255 - mean) / std).numpy()

    return run


def _onnxruntime(bundle: Any, pixels: Any) -> Callable[[], Any]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "network.onnx"))
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            example = (torch.from_numpy(pixels),)
            program: Any = torch.onnx.export(
                build_network(bundle), example, dynamo=True, verbose=False
            )
            program.save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: pixels})[0]


if __name__ == "__main__":
    main()
