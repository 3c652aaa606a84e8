"""Measure the peak rates of this machine, which accompany every benchmark result.

python -m benchmarks.machine

Product: of two 2,048 x 2,048 matrices, in float32 by numpy, in bf16 by torch if the processor has
bf16. Copy: bytes read and written per second, of an array larger than all caches. Decode: JPEG
photos of 500 x 375 (quality 90) per second, decoded to 224 pixels by the decoder of lookalike, an
upper bound for stages that read photos. Each is measured with one thread and with one per core, in
separate processes; the best of five.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import run_side
from retrieval.vectors.matmul import has_bf16

_TRIES = 5
_SIDE = 2048
_COPIED = 1 << 28
_PHOTOS = 64
_PACKAGES = ("numpy", "torch", "faiss-cpu", "openvino", "ray", "pyarrow", "duckdb")


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side")
    print(json.dumps(_peaks() if parser.parse_args().side else machine(), indent=None))


def machine() -> dict[str, Any]:
    """Return a description of this machine, its load, package versions and peak rates."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    return {
        **_processor(),
        "cores": cores,
        "load_before": round(load, 2),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "peaks": {
            f"threads {count}": run_side("benchmarks.machine", "peaks", count)
            for count in sorted({1, cores})
        },
    }


def _processor() -> dict[str, Any]:
    cpu_info = Path("/proc/cpuinfo")
    text = cpu_info.read_text() if cpu_info.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"flags\s*: (.*)", text)
    reported = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return {
        "processor": name[1] if name else platform.processor(),
        "instructions": sorted(reported & set(flags[1].split() if flags else ())),
    }


def _peaks() -> dict[str, float]:
    threads = int(os.environ["OMP_NUM_THREADS"])
    generator = np.random.default_rng(0)
    left, right = (generator.normal(size=(_SIDE, _SIDE)).astype(np.float32) for _ in range(2))
    work = 2.0 * _SIDE**3 / 1e9
    rates = {"float32_gflops": work / _best(lambda: left @ right)}
    if has_bf16():
        rates["bf16_gflops"] = work / _best(_bf16(left, right, threads))
    source, target = np.ones(_COPIED // 4, np.float32), np.empty(_COPIED // 4, np.float32)
    ranges = np.array_split(np.arange(len(source)), threads)
    parts = [slice(int(indices[0]), int(indices[-1]) + 1) for indices in ranges]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))

        rates["copy_gbytes"] = 2 * _COPIED / 1e9 / _best(copy)
        decode = _decode()
        rates["decoded_photos"] = _PHOTOS / _best(lambda: list(pool.map(decode, range(_PHOTOS))))
    return {name: round(value, 1) for name, value in rates.items()}


def _bf16(left: Any, right: Any, threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(threads)
    bf16_left, bf16_right = (torch.from_numpy(array).to(torch.bfloat16) for array in (left, right))
    return lambda: bf16_left @ bf16_right


def _decode() -> Callable[[int], Any]:
    from PIL import Image

    from retrieval.images.decode import decode
    from retrieval.models.resolve import resolve_source

    transform = resolve_source("resnet50", "random", image_size=None, resize=None, seed=0).transform
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(noise).resize((500, 375)).save(jpeg, "JPEG", quality=90)
    return lambda _: decode(jpeg.getvalue(), transform, max_pixels=1 << 30)


def _best(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
