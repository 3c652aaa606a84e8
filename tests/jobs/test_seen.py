"""What is seen of a job from outside, and which folders the nodes of its cluster see."""

import os
import re
import urllib.request

import pytest

from tests import nodes
from tests.commands import SMALL, lookalike_here
from tests.conftest import draw_photos
from tests.nodes import Running
from tests.retrieval.storage.s3 import free_ports

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

WAIT = 240
METRICS = {"RAY_enable_metrics_collection": "true", "RAY_metrics_report_interval_ms": "500"}


@pytest.fixture
def there(tmp_path):
    """A cluster whose head exports metrics, and whose workers each have a folder `own`."""
    if os.geteuid():
        pytest.skip("only root may give a node a folder of its own")
    (tmp_path / "own").mkdir()
    (tmp_path / "nodes").mkdir()
    (port,) = free_ports(1)
    given = {"own": tmp_path / "own", "head": (f"--metrics-export-port={port}",)}
    with nodes.cluster(tmp_path / "nodes", METRICS, **given) as cluster:
        cluster.metrics = f"http://127.0.0.1:{port}/metrics"
        yield cluster


def counted(there):
    """Scrape what the job counts, as Prometheus would."""
    with urllib.request.urlopen(there.metrics, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        match = re.match(r'ray_lookalike_(\w+)\{.*stage="([^"]*)".*\} (\S+)$', line)
        if match:
            found[match[2], match[1]] = float(match[3])
    return found


def embed(there, source, output, *words):
    words = ["--input", source, "--output", output, *SMALL, "--chunk-rows", 2, *words]
    return Running("embed", *words, "--ray-address", there.address, env=there.environment)


def test_a_job_is_counted_and_a_folder_that_a_node_does_not_see_is_refused(there, tmp_path):
    photos = draw_photos(tmp_path / "photos", 12)
    (photos / "broken.jpg").write_bytes(b"no photo")
    there.hold("one", "parts/00000003")
    there.hold("two", "parts/00000003")
    running = embed(there, photos, tmp_path / "out", "--max-error-rate", 0.5)
    nodes.until(lambda: counted(there).get(("embed", "done_total"), 0) >= 9, "counters", WAIT)
    found = counted(there)
    assert found["embed", "to_do"] == 13
    assert found["embed", "failed_total"] == 1
    there.let_go("one")
    there.let_go("two")
    assert running.ended(WAIT).code == 0
    assert lookalike_here("verify", tmp_path / "out").code == 0

    refused = embed(there, photos, tmp_path / "own" / "out").ended(WAIT)
    assert refused.code == 2
    assert re.search(
        r"--output \S+/own/out is a local path, and node 127\.0\.0\.[23]", refused.error
    )
    assert list((tmp_path / "own").iterdir()) == []
    refused = embed(there, draw_photos(tmp_path / "own" / "p", 3), tmp_path / "two").ended(WAIT)
    assert refused.code == 2
    assert re.search(r"--input \S+/own/p is a local path, and node", refused.error)
