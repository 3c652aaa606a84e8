"""Tests of compiled sums, and of where compiled code is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest

from retrieval.vectors import compiled, score_kernel
from retrieval.vectors.scoring import block, score_pairs
from tests.retrieval.sample_vectors import METRICS


@pytest.mark.parametrize("dimension", [*range(20), 127, 128, 129, 136, 200, 256, 511, 1280, 2049])
def test_compiled_sums_have_the_bits_of_numpy(dimension):
    generator = np.random.default_rng(dimension)
    left, right = generator.normal(size=(2, 60, dimension)).astype(np.float32)
    left[:10] *= np.float32(1e30)
    left[10:20] *= np.float32(1e-40)  # subnormal
    left[20:22], right[22] = 0, -0.0
    rows, sums = np.arange(60), np.empty(60)
    wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
    score_kernel.sum_pairs(left, right, rows, rows, False, sums)
    assert sums.tobytes() == (wide_left * wide_right).sum(-1).tobytes()
    score_kernel.sum_pairs(left, right, rows, rows, True, sums)
    assert sums.tobytes() == ((wide_left - wide_right) ** 2).sum(-1).tobytes()
    assert score_kernel.has_order_of_numpy(dimension)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_numpy_where_its_order_is_another(metric, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(40, 33)).astype(np.float32)
    vectors.setflags(write=False)
    q, x = (part.ravel() for part in np.indices((40, 40)))
    both = block(vectors, metric)
    scores = score_pairs(both, both, q, x)
    monkeypatch.setattr(score_kernel, "has_order_of_numpy", lambda _: False)
    assert score_pairs(both, both, q, x).tobytes() == scores.tobytes()


def test_temporary_folder_is_private(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = compiled.private_temporary_folder()
    assert folder is not None
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert compiled.private_temporary_folder() == folder
    os.chmod(folder, 0o777)  # code that others wrote there must not be run
    assert compiled.private_temporary_folder() is None
    os.rmdir(folder)
    os.symlink(tmp_path, folder)
    assert compiled.private_temporary_folder() is None


@pytest.mark.parametrize("broken", [False, True], ids=["writable", "not writable"])
def test_code_is_kept_in_the_temporary_folder_or_nowhere(broken, tmp_path, monkeypatch):
    """As where the package and the user's cache folder are not writable."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compile_function, cached = compiled._compile, []

    def refuse_package_folder(function, signature, *, cache):
        if cache and (broken or numba.config.CACHE_DIR == ""):
            raise RuntimeError("cannot cache function: no locator available")
        cached.append(cache)
        return compile_function(function, signature, cache=cache)

    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(compiled, "_compile", refuse_package_folder)
    double = compiled.compiled("i8(i8)")(_double)
    assert double(21) == 42
    assert cached == [not broken]
    assert numba.config.CACHE_DIR == ""
    assert bool(list(tmp_path.rglob("*.nbi"))) is not broken


def _double(number: int) -> int:
    return 2 * number


def test_code_is_compiled_once(tmp_path):
    """A second process loads it."""
    code = (
        "from retrieval.vectors import pair_kernels as k; f = k.collect;"
        "print(sum(f.stats.cache_hits.values()), sum(f.stats.cache_misses.values()))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=environment, cwd=Path(__file__).parents[3],
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert outputs == [["0", "1"], ["1", "0"]]
