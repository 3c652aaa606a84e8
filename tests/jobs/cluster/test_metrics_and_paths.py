"""Test exported metrics, and the check that all nodes see the same local folders."""

import os
import re
import urllib.request

import pytest

from tests import ray_nodes
from tests.commands import SMALL_MODEL_OPTIONS, run_command_in_process
from tests.conftest import draw_photos
from tests.ray_nodes import RunningCommand
from tests.retrieval.storage.s3 import free_ports

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

TIMEOUT = 240
METRICS_SETTINGS = {
    "RAY_enable_metrics_collection": "true",
    "RAY_metrics_report_interval_ms": "500",
}


@pytest.fixture
def cluster(tmp_path):
    """Yield a cluster whose head exports metrics and whose workers each have a private folder."""
    if os.geteuid():
        pytest.skip("requires root to mount a private folder on each node")
    (tmp_path / "own").mkdir()
    (tmp_path / "nodes").mkdir()
    (port,) = free_ports(1)
    options = {
        "private_folder": tmp_path / "own",
        "head_arguments": (f"--metrics-export-port={port}",),
    }
    with ray_nodes.ray_cluster(tmp_path / "nodes", METRICS_SETTINGS, **options) as cluster:
        cluster.metrics = f"http://127.0.0.1:{port}/metrics"
        yield cluster


def read_metrics(cluster):
    """Scrape the metrics of a job, and return the values by (stage, name)."""
    with urllib.request.urlopen(cluster.metrics, timeout=10) as response:
        text = response.read().decode()
    metrics = {}
    for line in text.splitlines():
        match = re.match(r'ray_lookalike_(\w+)\{.*stage="([^"]*)".*\} (\S+)$', line)
        if match:
            metrics[match[2], match[1]] = float(match[3])
    return metrics


def start_embed(cluster, source, output, *arguments):
    arguments = [
        "--input",
        source,
        "--output",
        output,
        *SMALL_MODEL_OPTIONS,
        "--chunk-rows",
        2,
        *arguments,
    ]
    return RunningCommand(
        "embed", *arguments, "--ray-address", cluster.address, env=cluster.environment
    )


def test_metrics_are_exported_and_unshared_paths_are_refused(cluster, tmp_path):
    photos = draw_photos(tmp_path / "photos", 12)
    (photos / "broken.jpg").write_bytes(b"no photo")
    cluster.pause_at("node1", "parts/00000003")
    cluster.pause_at("node2", "parts/00000003")
    command = start_embed(cluster, photos, tmp_path / "out", "--max-error-rate", 0.5)
    ray_nodes.wait_until(
        lambda: read_metrics(cluster).get(("embed", "done_total"), 0) >= 9, "counters", TIMEOUT
    )
    metrics = read_metrics(cluster)
    assert metrics["embed", "to_do"] == 13
    assert metrics["embed", "failed_total"] == 1
    cluster.resume("node1")
    cluster.resume("node2")
    assert command.wait(TIMEOUT).exit_code == 0
    assert run_command_in_process("verify", tmp_path / "out").exit_code == 0

    result = start_embed(cluster, photos, tmp_path / "own" / "out").wait(TIMEOUT)
    assert result.exit_code == 2
    assert re.search(
        r"--output \S+/own/out is a local path, and node 127\.0\.0\.[23]", result.error
    )
    assert list((tmp_path / "own").iterdir()) == []
    result = start_embed(cluster, draw_photos(tmp_path / "own" / "p", 3), tmp_path / "two").wait(
        TIMEOUT
    )
    assert result.exit_code == 2
    assert re.search(r"--input \S+/own/p is a local path, and node", result.error)
