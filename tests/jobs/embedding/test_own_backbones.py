"""Whole jobs with the user's own module, whose code each command must name, and an ONNX file."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.commands import run_command
from tests.retrieval.models.onnx_writer import small_network
from tests.retrieval.models.test_own_model import SOURCE


def rank(tmp_path, photos, name, *options):
    return run_command(
        "rank", "--index", tmp_path / "result/index", "--queries", photos, "--top-k", "3",
        "--output", tmp_path / name, "--engine", "torch", *options,
    )  # fmt: skip


@pytest.mark.nightly  # six commands, each with its Ray
def test_own_module_is_run_by_workers_and_named_in_each_command(photos, tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_net.py").write_text(SOURCE)
    named = ("--backbone", "python:own_net:make", "--python-path", folder)
    gallery, queries = photos("gallery", 9), photos("queries", 3, seed=1)
    result = run_command(
        "run", "--gallery", gallery, "--queries", queries, "--output", tmp_path / "result",
        "--engine", "torch", "--top-k", "3", *named,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    matches = pq.read_table(tmp_path / "result/matches/matches")
    assert len(matches) == 9
    values = json.loads((tmp_path / "result/gallery/model/bundle.json").read_text())
    assert values["code"]["name"] == "make"
    code = [path for path in (tmp_path / "result").rglob("*") if path.suffix == ".py"]
    assert code == []

    unnamed = rank(tmp_path, queries, "unnamed")
    assert unnamed.exit_code == 2
    assert "never chosen by an output; name it with --backbone python:own_net:make" in unnamed.error
    ranked = rank(tmp_path, queries, "ranked", *named)
    assert ranked.exit_code == 0, ranked.stderr
    assert pq.read_table(tmp_path / "ranked/matches").equals(matches)
    other = rank(tmp_path, queries, "other", "--backbone", "resnet50")
    assert (other.exit_code, "contradicts --index" in other.error) == (2, True)

    (folder / "own_net.py").write_text(SOURCE + "# changed\n")
    changed = rank(tmp_path, queries, "changed", *named)
    assert changed.exit_code == 6
    assert "use the same source, or embed the images again" in changed.error


@pytest.mark.nightly
def test_onnx_file_is_run_by_openvino(photos, tmp_path):
    weight = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
    (tmp_path / "net.onnx").write_bytes(small_network(weight))
    options = ("embed", "--input", photos("gallery", 6), "--output", tmp_path / "store",
               "--backbone", f"onnx:{tmp_path / 'net.onnx'}")  # fmt: skip
    refused = run_command(*options, "--engine", "torch")
    assert refused.exit_code == 2
    assert "onnx:net.onnx is run by OpenVINO on CPUs; omit --engine torch" in refused.error
    result = run_command(*options, "--mean", "0.5", "--std", "0.25", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.values["dimension"] == 5
    assert (tmp_path / "store/model/weights.onnx").is_file()
    assert run_command("verify", tmp_path / "store").exit_code == 0
    other = run_command(*options, "--mean", "0.4", "--std", "0.25")
    assert other.exit_code == 6
