"""Nodes that die, links that break, memory that runs out: the same bytes in the end, and in time.

What was done, what was seen and how long it took stands in docs/running.md, "Faults tried".
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

from tests import nodes
from tests.commands import SMALL, lookalike_here
from tests.conftest import draw_photos
from tests.jobs.here import without_ray
from tests.links import links
from tests.nodes import Running
from tests.retrieval.storage.s3 import at_rate, new_prefix, options
from tests.stores import write_store
from tests.trees import tree

pytestmark = pytest.mark.nightly

WAIT = 120
STALL = 420  # a stall is one of 300 s


@dataclass(frozen=True)
class Whole:
    """Inputs, and what comes of them where nothing is harmed."""

    root: Path

    def words(self, verb, output):
        given = {
            "embed": ["--input", self.root / "photos", *SMALL, "--chunk-rows", 2],
            "index": ["--embeddings", self.root / "store", *INDEX],
            "rank": ["--index", self.root / "index", "--queries", self.root / "queries"],
        }
        return [verb, *given[verb], "--output", output]

    def check(self, verb, output):
        """Compare an output with the unharmed one, byte by byte."""
        assert tree(output, half=False) == tree(self.root / OUTPUTS[verb])


INDEX = ("--rows-per-shard", 2000, "--index-factory", "IVF512,SQfp16")
"""Lists enough for a sample of all 24,000 rows: three slices, which the nodes keep."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Draw the inputs, and do each verb here and now."""
    root = tmp_path_factory.mktemp("whole")
    draw_photos(root / "photos", 40)
    vectors = np.random.default_rng(0).normal(size=(24_600, 32)).astype(np.float16)
    write_store(root / "store", vectors[:24_000], chunk_rows=1000)
    write_store(root / "queries", vectors[24_000:], chunk_rows=500)
    made = Whole(root)
    with without_ray():
        for verb, output in (("embed", "embedded"), ("index", "index"), ("rank", "matches")):
            assert lookalike_here(*made.words(verb, root / output)).code == 0
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with nodes.cluster(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


@pytest.fixture
def there(cluster):
    """Give the cluster with all its nodes."""
    cluster.mend()
    return cluster


OUTPUTS = {"embed": "embedded", "index": "index", "rank": "matches"}

KILLED = {
    "listing": ("embed", "head", "link .*listing"),
    "embed": ("embed", "one", "write .*/parts/"),
    "train": ("index", "two", "read .*/parts/"),
    "index": ("index", "one", "sync .*/shards/"),
    "rank": ("rank", "one", "write .*/candidates/"),
}


@pytest.mark.parametrize("stage", KILLED)
def test_a_node_is_killed(there, whole, tmp_path, stage):
    verb, held, pattern = KILLED[stage]
    there.hold(held, pattern)
    running = submitted(there, whole.words(verb, tmp_path / "out"))
    there.wait_held(held, running, WAIT)
    if stage == "train":  # one has done all it was given, and holds slices of the sample
        time.sleep(3)
    with timed(f"a node killed, {stage}"):
        there.kill("one")
        there.let_go(held)
        ended = running.ended(WAIT)
    assert ended.code == 0, ended.err
    whole.check(verb, tmp_path / "out")


def test_the_largest_node_is_killed(there, whole, tmp_path):
    there.kill("one")
    there.start("one", 2, cpus=4)  # so that its five workers have room for two on the other
    there.wait(3)
    there.hold("one", "write .*/parts/")
    running = submitted(there, whole.words("embed", tmp_path / "out"))
    there.wait_held("one", running, WAIT)
    with timed("a node of four fifths of the CPUs killed, embed"):
        there.kill("one")
        there.let_go("one")
        ended = running.ended(WAIT)
    assert ended.code == 0, ended.err
    whole.check("embed", tmp_path / "out")


def test_a_worker_is_killed_for_memory(there, whole, tmp_path):
    there.hold("one", "write .*/parts/")
    running = submitted(there, whole.words("embed", tmp_path / "out"))
    there.wait_held("one", running, WAIT)
    with timed("an actor killed"):
        (actor,) = there.has("one", "MapWorker")
        actor.kill()
        there.let_go("one")
        ended = running.ended(WAIT)
    assert ended.code == 0, ended.err
    assert "a worker died in chunk" in ended.err
    whole.check("embed", tmp_path / "out")


def test_the_head_is_killed_and_started_anew(there, whole, tmp_path):
    there.hold("one", "write .*/parts/")
    running = submitted(there, whole.words("embed", tmp_path / "out"))
    there.wait_held("one", running, WAIT)
    with timed("the head killed, until the job is given up"):
        for name in [*there.processes]:  # whoever starts a head anew starts the others too
            there.kill(name)
        there.start_head()
        there.mend()
        ended = running.ended(WAIT)
    assert ended.code == 3, ended.err
    assert "does not know lookalike-embed" in ended.error
    with timed("the same command again"):
        ended = submitted(there, whole.words("embed", tmp_path / "out")).ended(WAIT)
    assert ended.code == 0, ended.err
    whole.check("embed", tmp_path / "out")


def test_two_processes_learn_though_a_node_is_killed(there, whole, tmp_path):
    output, words = tmp_path / "bundle", ["train", "--data", whole.root / "photos"]
    words += ["--epochs", 6, "--image-size", 32, "--workers", 2, "--cache", tmp_path / "cache"]
    assert submitted(there, [*words, "--output", tmp_path / "whole"]).ended(WAIT).code == 0
    running = submitted(there, [*words, "--output", output])
    nodes.until(lambda: [*output.glob("work/epoch-00002.json")], "an epoch", WAIT)
    with timed("a node killed, train --workers 2"):
        there.kill(next(name for name in nodes.NAMES if there.has(name, "RayTrainWorker")))
        ended = running.ended(WAIT)
    assert ended.code == 0, ended.err
    assert tree(output, half=False) == tree(tmp_path / "whole")


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A cluster whose nodes have links that can be cut."""
    with links() as made, nodes.cluster(tmp_path_factory.mktemp("linked"), links=made) as cluster:
        yield cluster


@pytest.mark.parametrize("seconds", [1, 8, None])
def test_a_link_is_cut_and_healed(linked, whole, tmp_path, seconds):
    linked.mend()
    linked.hold("one", "write .*/parts/")
    running = submitted(linked, whole.words("embed", tmp_path / "out"))
    linked.wait_held("one", running, WAIT)
    with timed(f"a link cut for {seconds or 'ever'}"):
        linked.links.cut(2)
        linked.let_go("one")
        if seconds is not None:
            time.sleep(seconds)
            linked.links.heal(2)
        ended = running.ended(WAIT)
    linked.links.heal(2)
    assert ended.code == 0, ended.err
    linked.kill("one")  # so that it writes no more; it may have been given up, and not know it
    whole.check("embed", tmp_path / "out")


def test_memory_that_is_always_short_ends_the_job(whole, tmp_path):
    short = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "250"}
    harm = dict.fromkeys(nodes.NAMES, short)
    with nodes.cluster(tmp_path, harm=harm) as there, timed("memory always short"):
        ended = submitted(there, whole.words("embed", tmp_path / "out")).ended(STALL)
    assert ended.code == 8, ended.err
    assert "of too little memory" in ended.error


def test_an_object_store_that_is_smaller_than_the_network(whole, tmp_path):
    network = ["--backbone", "resnet50", "--weights", "random"]
    words = ["embed", "--input", whole.root / "photos", *network, "--limit", 6, "--output"]
    with without_ray():
        assert lookalike_here(*words, tmp_path / "whole").code == 0
    with nodes.cluster(tmp_path, store=80_000_000) as there, timed("a small object store"):
        ended = submitted(there, [*words, tmp_path / "out"]).ended(WAIT)
    assert ended.code == 0, ended.err
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_bucket_delays_refuses_and_loses_answers(whole, tmp_path, proxy):
    access = {"FSSPEC_S3": json.dumps(options(proxy.address))}
    output = new_prefix()
    with nodes.cluster(tmp_path, access) as there, timed("a bucket at its worst"):
        proxy.delay = 0.02
        proxy.refuse, proxy.lose = at_rate(0.05, 1), at_rate(0.2, 2, ("PUT",))
        ended = submitted(there, whole.words("embed", output)).ended(WAIT)
        assert proxy.refused
        assert proxy.lost
        proxy.heal()
    assert ended.code == 0, ended.err
    system = fsspec.filesystem("s3", **options(proxy.address))
    system.get(output, str(tmp_path / "got"), recursive=True)
    whole.check("embed", tmp_path / "got")


def submitted(there, words):
    """Start a command as a job of the cluster."""
    return Running(*words, "--ray-address", there.address, env=there.environment)


@contextmanager
def timed(what):
    """Say how long it took, for the table: `--log-cli-level=WARNING` shows it."""
    began = time.monotonic()
    yield
    logging.getLogger(__name__).warning("%s: %.1f s", what, time.monotonic() - began)
