"""Test that killed nodes, cut links and exhausted memory do not change the output of a job.

Measured recovery times are listed in docs/running.md, "Tested faults".
"""

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests import ray_nodes
from tests.commands import SMALL_MODEL_OPTIONS, run_command_in_process
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray
from tests.network_links import bridged_network
from tests.ray_nodes import RunningCommand
from tests.retrieval.storage.s3 import at_rate, new_prefix, options
from tests.sample_stores import write_store

pytestmark = pytest.mark.nightly

TIMEOUT = 300
STALL_TIMEOUT = 420  # above the 300 s after which a stall is detected


@dataclass(frozen=True)
class ReferenceOutputs:
    """Inputs, and the outputs of undisturbed runs."""

    root: Path

    def arguments(self, verb, output):
        """Return the command line that runs a stage on the inputs."""
        stage_options = {
            "embed": ["--input", self.root / "photos", *SMALL_MODEL_OPTIONS, "--chunk-rows", 2],
            "index": ["--embeddings", self.root / "store", *INDEX_OPTIONS],
            "rank": ["--index", self.root / "index", "--queries", self.root / "queries"],
        }
        return [verb, *stage_options[verb], "--output", output]

    def check(self, verb, output):
        """Assert that an output equals the undisturbed one, byte by byte."""
        assert read_tree(output, include_temporary=False) == read_tree(self.root / OUTPUTS[verb])


INDEX_OPTIONS = ("--rows-per-shard", 2000, "--index-factory", "IVF512,SQfp16")
"""Options for enough lists that the training sample has all 24,000 rows, in three slices."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Draw the inputs, and run each stage without Ray."""
    root = tmp_path_factory.mktemp("whole")
    draw_photos(root / "photos", 40)
    vectors = np.random.default_rng(0).normal(size=(24_600, 32)).astype(np.float16)
    write_store(root / "store", vectors[:24_000], chunk_rows=1000)
    write_store(root / "queries", vectors[24_000:], chunk_rows=500)
    outputs = ReferenceOutputs(root)
    with without_ray():
        for verb, output in (("embed", "embedded"), ("index", "index"), ("rank", "matches")):
            assert run_command_in_process(*outputs.arguments(verb, root / output)).exit_code == 0
    return outputs


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory):
    with ray_nodes.ray_cluster(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster):
    """Return the cluster with all nodes restarted."""
    running_cluster.restore()
    return running_cluster


OUTPUTS = {"embed": "embedded", "index": "index", "rank": "matches"}

PAUSED_OPERATIONS = {
    "listing": ("embed", "head", "link .*listing"),
    "embed": ("embed", "node1", "write .*/parts/"),
    "train": ("index", "node2", "read .*/parts/"),
    "index": ("index", "node1", "sync .*/shards/"),
    "rank": ("rank", "node1", "write .*/candidates/"),
}


@pytest.mark.parametrize("stage", PAUSED_OPERATIONS)
def test_killed_node(cluster, reference, tmp_path, stage):
    verb, paused_node, pattern = PAUSED_OPERATIONS[stage]
    if paused_node == "node1":  # either node may finish the work before the other one starts
        cluster.pause_all_at(pattern)
    else:
        cluster.pause_at(paused_node, pattern)
    command = submit_command(cluster, reference.arguments(verb, tmp_path / "out"))
    cluster.wait_until_paused(paused_node, command, TIMEOUT)
    if stage == "train":  # until node1 has finished its tasks and holds slices of the sample
        time.sleep(3)
    with timed(f"a node killed, {stage}"):
        cluster.kill("node1")
        cluster.resume(paused_node)
        result = command.wait(TIMEOUT)
    assert result.exit_code == 0, result.stderr
    reference.check(verb, tmp_path / "out")


def test_killed_node_with_most_cpus(cluster, reference, tmp_path):
    cluster.kill("node1")
    cluster.start("node1", 2, cpus=4)  # node2 can run two of its five workers
    cluster.wait_for_nodes(3)
    cluster.pause_all_at("write .*/parts/")
    command = submit_command(cluster, reference.arguments("embed", tmp_path / "out"))
    cluster.wait_until_paused("node1", command, TIMEOUT)
    with timed("a node of four fifths of the CPUs killed, embed"):
        cluster.kill("node1")
        cluster.resume("node1")
        result = command.wait(TIMEOUT)
    assert result.exit_code == 0, result.stderr
    reference.check("embed", tmp_path / "out")


def test_killed_actor(cluster, reference, tmp_path):
    cluster.pause_all_at("write .*/parts/")
    command = submit_command(cluster, reference.arguments("embed", tmp_path / "out"))
    cluster.wait_until_paused("node1", command, TIMEOUT)
    with timed("an actor killed"):
        (actor,) = cluster.find_processes("node1", "ray::Worker")
        actor.kill()
        cluster.resume("node1")
        result = command.wait(TIMEOUT)
    assert result.exit_code == 0, result.stderr
    assert "a worker died in chunk" in result.stderr
    reference.check("embed", tmp_path / "out")


def test_killed_and_restarted_head(cluster, reference, tmp_path):
    cluster.pause_all_at("write .*/parts/")
    command = submit_command(cluster, reference.arguments("embed", tmp_path / "out"))
    cluster.wait_until_paused("node1", command, TIMEOUT)
    with timed("the head killed, until the job is given up"):
        for name in [*cluster.processes]:  # worker nodes do not survive a new head
            cluster.kill(name)
        cluster.start_head()
        cluster.restore()
        result = command.wait(TIMEOUT)
    assert result.exit_code == 3, result.stderr
    assert "does not know lookalike-embed" in result.error
    with timed("the same command again"):
        result = submit_command(cluster, reference.arguments("embed", tmp_path / "out")).wait(
            TIMEOUT
        )
    assert result.exit_code == 0, result.stderr
    reference.check("embed", tmp_path / "out")


def test_killed_node_during_distributed_training(cluster, reference, tmp_path):
    output, arguments = tmp_path / "bundle", ["train", "--data", reference.root / "photos"]
    arguments += ["--epochs", 6, "--image-size", 32, "--workers", 2, "--cache", tmp_path / "cache"]
    assert (
        submit_command(cluster, [*arguments, "--output", tmp_path / "whole"])
        .wait(TIMEOUT)
        .exit_code
        == 0
    )
    command = submit_command(cluster, [*arguments, "--output", output])
    ray_nodes.wait_until(lambda: [*output.glob("work/epoch-00002.json")], "an epoch", TIMEOUT)
    with timed("a node killed, train --workers 2"):
        nodes = ray_nodes.WORKER_NODES
        cluster.kill(next(n for n in nodes if cluster.find_processes(n, "RayTrainWorker")))
        result = command.wait(TIMEOUT)
    assert result.exit_code == 0, result.stderr
    assert read_tree(output, include_temporary=False) == read_tree(tmp_path / "whole")


@pytest.fixture(scope="module")
def linked_cluster(tmp_path_factory):
    """Yield a cluster whose nodes have links that can be cut."""
    folder = tmp_path_factory.mktemp("linked")
    with bridged_network() as links, ray_nodes.ray_cluster(folder, links=links) as cluster:
        yield cluster


@pytest.mark.parametrize("seconds", [1, 8, None])
def test_cut_link(linked_cluster, reference, tmp_path, seconds):
    linked_cluster.restore()
    linked_cluster.pause_all_at("write .*/parts/")
    command = submit_command(linked_cluster, reference.arguments("embed", tmp_path / "out"))
    linked_cluster.wait_until_paused("node1", command, TIMEOUT)
    with timed(f"a link cut for {seconds or 'ever'}"):
        linked_cluster.links.cut(2)
        linked_cluster.resume("node1")
        if seconds is not None:
            time.sleep(seconds)
            linked_cluster.links.heal(2)
        result = command.wait(TIMEOUT)
    linked_cluster.links.heal(2)
    assert result.exit_code == 0, result.stderr
    linked_cluster.kill("node1")  # it may be declared dead and still write
    reference.check("embed", tmp_path / "out")


def test_permanent_memory_shortage_ends_the_job(reference, tmp_path):
    low_threshold = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "250"}
    node_settings = dict.fromkeys(ray_nodes.WORKER_NODES, low_threshold)
    with (
        ray_nodes.ray_cluster(tmp_path, node_settings=node_settings) as cluster,
        timed("memory always short"),
    ):
        result = submit_command(cluster, reference.arguments("embed", tmp_path / "out")).wait(
            STALL_TIMEOUT
        )
    assert result.exit_code == 8, result.stderr
    assert "of too little memory" in result.error


def test_object_store_smaller_than_the_network(reference, tmp_path):
    model_options = ["--backbone", "resnet50", "--weights", "random"]
    arguments = [
        "embed",
        "--input",
        reference.root / "photos",
        *model_options,
        "--limit",
        6,
        "--output",
    ]
    with without_ray():
        assert run_command_in_process(*arguments, tmp_path / "whole").exit_code == 0
    with (
        ray_nodes.ray_cluster(tmp_path, object_store_bytes=80_000_000) as cluster,
        timed("a small object store"),
    ):
        result = submit_command(cluster, [*arguments, tmp_path / "out"]).wait(TIMEOUT)
    assert result.exit_code == 0, result.stderr
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "whole")


def test_slow_and_unreliable_bucket(reference, tmp_path, proxy):
    settings = {"FSSPEC_S3": json.dumps(options(proxy.address))}
    output = new_prefix()
    with ray_nodes.ray_cluster(tmp_path, settings) as cluster, timed("a bucket at its worst"):
        proxy.delay = 0.02
        proxy.refuse, proxy.drop_response = at_rate(0.05, 1), at_rate(0.2, 2, ("PUT",))
        result = submit_command(cluster, reference.arguments("embed", output)).wait(TIMEOUT)
        assert proxy.refused
        assert proxy.dropped
        proxy.reset()
    assert result.exit_code == 0, result.stderr
    filesystem = fsspec.filesystem("s3", **options(proxy.address))
    filesystem.get(output, str(tmp_path / "got"), recursive=True)
    reference.check("embed", tmp_path / "got")


def submit_command(cluster, arguments):
    """Start a command as a job of the cluster."""
    return RunningCommand(*arguments, "--ray-address", cluster.address, env=cluster.environment)


@contextmanager
def timed(fault):
    """Log the duration of the block; `--log-cli-level=WARNING` shows it."""
    start = time.monotonic()
    yield
    logging.getLogger(__name__).warning("%s: %.1f s", fault, time.monotonic() - start)
