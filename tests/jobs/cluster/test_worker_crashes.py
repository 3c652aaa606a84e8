"""Test crashes and stalls of real workers: only the images that cause them are affected."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.cli import describe_error
from jobs.cluster import stall_detector, worker_failures
from jobs.cluster.actor_pool import stream
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding import embed
from retrieval.core.errors import Stalled
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.cluster.failing_workers import (
    KILL_ALWAYS,
    KILL_ONCE,
    SLOW_DECODE,
    append_mark,
    inject_worker_faults,
)
from tests.jobs.cluster.worker_functions import (
    block_until_released,
    hang_on_item_2,
    kill_worker,
    report_attempt,
)
from tests.jobs.in_process import embed_in_process, small_model

ROOT = Path(__file__).parents[3]
PART, LEDGER = (f"segments/00000/{kind}/00000001.parquet" for kind in ("parts", "failures"))


def settings(source, output):
    return EmbedSettings(
        input=str(source), output=str(output), chunk_rows=4, max_error_rate=0.9, workers=2,
        backbone="scratch", weights="random", image_size=32,
    )  # fmt: skip


# --- one image that always kills its worker, and one that kills it once ---


@dataclass
class CrashedRun:
    """The store of a run with crashes, its log, and the store of an undisturbed run."""

    killing_image: Path
    expected: dict[str, bytes]  # the undisturbed store
    store: Path
    log: list[str]
    cluster: Cluster


@pytest.fixture(scope="module")
def crashed(local_ray, tmp_path_factory):
    """Embed 12 photos in 3 chunks; chunk 1 has an image that kills, chunk 2 one that kills once."""
    root = tmp_path_factory.mktemp("poison")
    photos = draw_photos(root / "photos", 12)
    killing_image = photos / "class1" / "photo0004.jpg"
    append_mark(killing_image, KILL_ALWAYS)
    append_mark(photos / "class2" / "photo0008.jpg", KILL_ONCE)
    embed_in_process(photos, root / "whole", chunk_rows=4)
    log, cluster = [], Cluster(None, 2)
    with pytest.MonkeyPatch.context() as patch:
        inject_worker_faults(patch, root / "once")
        patch.setattr(stall_detector, "print_message", log.append)
        embed.embed(settings(photos, root / "store"), cluster, prepared=small_model())
    return CrashedRun(killing_image, read_tree(root / "whole"), root / "store", log, cluster)


def test_killing_image_is_identified_within_three_deaths(crashed):
    deaths = [line for line in crashed.log if "chunk 1 (rows 4 to 7)" in line]
    assert deaths == [
        "a worker died in chunk 1 (rows 4 to 7): trying again, one image at a time",
        f"a worker died at {crashed.killing_image} (chunk 1 (rows 4 to 7)): trying again, one "
        "image at a time",
        f"a worker died again at {crashed.killing_image} (chunk 1 (rows 4 to 7)): the image is "
        "skipped and recorded in the ledger",
    ]
    (line,) = pq.read_table(crashed.store / LEDGER).to_pylist()
    assert line["path"] == str(crashed.killing_image)
    assert (line["stage"], line["error"]) == ("embed", "WorkerDied")
    assert line["message"] == "the worker died each time it had this image at hand"


def test_other_rows_of_the_chunk_are_unchanged(crashed):
    expected = pq.read_table(crashed.store.with_name("whole") / PART).to_pylist()
    actual = pq.read_table(crashed.store / PART).to_pylist()
    assert actual == [row for row in expected if row["path"] != str(crashed.killing_image)]
    assert len(actual) == 3


def test_single_crash_quarantines_nothing_and_other_files_are_identical(crashed):
    assert "a worker died in chunk 2 (rows 8 to 11): trying again" in " ".join(crashed.log)
    assert len(crashed.log) == 4
    changed_files = {PART, LEDGER, "files.parquet", "manifest.json", "job.json"}
    store = read_tree(crashed.store)
    assert store.keys() - {LEDGER} == crashed.expected.keys()
    for path in crashed.expected.keys() - changed_files:
        assert store[path] == crashed.expected[path], path
    assert {verdict.state for verdict in verify(open_folder(str(crashed.store)))} == {"finished"}


# --- workers without images ---


def test_later_stages_skip_the_quarantined_image(crashed):
    results = list(stream(crashed.cluster, report_attempt, [1], None, "cpu"))
    assert results == [{"n": 1, "images": [str(crashed.killing_image)]}]
    crashed.cluster.release_pool()


@pytest.mark.nightly  # 10 deaths
def test_item_that_always_crashes_without_an_image_is_refused(local_ray):
    with pytest.raises(Stalled, match=r"item 1: the worker died 10 times, and not because of"):
        list(stream(Cluster(None, 1), kill_worker, [1], None, "cpu"))


@pytest.fixture
def release_file(local_ray, tmp_path):
    """Return the path of a file that ends hanging workers.

    Create it after the test, and wait for threads that the end of a job would end.
    """
    yield tmp_path / "let go"
    (tmp_path / "let go").touch()
    for thread in threading.enumerate():
        if thread.name == stall_detector.ANSWER_THREAD:
            thread.join(60)


@pytest.fixture
def cluster(local_ray):
    """Return a cluster whose worker ends with the test, even if an error still refers to it."""
    cluster = Cluster(None, 1)
    yield cluster
    cluster.release_pool()


@pytest.mark.nightly
def test_killed_failure_log_is_restarted(release_file, cluster, monkeypatch):
    import ray

    failure_logs, start_failure_log = [], worker_failures.start_failure_log

    def start_and_record(quarantined_images):
        failure_logs.append(start_failure_log(quarantined_images))
        return failure_logs[-1]

    def kill():
        while not ray.get(failure_logs[0].summary.remote()).begun:
            time.sleep(0.1)
        ray.kill(failure_logs[0], no_restart=False)
        release_file.touch()

    monkeypatch.setattr(worker_failures, "start_failure_log", start_and_record)
    results = stream(cluster, block_until_released, [1, 2], release_file, "cpu")
    killer = threading.Timer(3, kill)  # when the failure log is open
    killer.start()
    assert sorted(result["item"] for result in results) == [1, 2]
    killer.join()


def test_stalled_image_is_named(release_file, cluster, monkeypatch):
    """Ray may hold back the first result until the second exists."""

    def shorten_stall_time():  # when the worker has started
        while not release_file.with_name("hanging").exists():
            time.sleep(0.1)
        monkeypatch.setattr(stall_detector, "STALL_SECONDS", 2.0)

    threading.Thread(target=shorten_stall_time, daemon=True).start()
    results = stream(cluster, hang_on_item_2, [1, 2], release_file, "cpu")
    message = r"item 2 has waited for /photos/x.jpg, .* for \d+ s"
    received = []
    with pytest.raises(Stalled, match=message) as stalled:
        received.extend(results)
    assert received in ([], [{"item": 1}])
    assert "finished work is kept, run the same command again" in str(stalled.value)
    assert describe_error(stalled.value) == (str(stalled.value), 8)


def test_stall_on_a_fully_booked_cluster_is_reported(release_file, cluster, monkeypatch):
    import ray

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class BookedActor:
        def ready(self):
            return True

    actor = BookedActor.remote()
    assert ray.get(actor.ready.remote(), timeout=60)
    monkeypatch.setattr(stall_detector, "STALL_SECONDS", 3.0)
    message = (
        r"no worker has begun, 1 workers of 0.5 CPU wait for resources \(of the cluster's (\d+) "
        r"CPUs \1 are booked\)"
    )
    try:
        with pytest.raises(Stalled, match=message):
            next(stream(cluster, report_attempt, [1], None, "cpu"))
    finally:
        ray.kill(actor)


@pytest.mark.parametrize(
    ("nodes", "device", "message"),
    [
        ([{}, {"CPU": 0.25}], "cpu", "a worker needs 0.5 CPU on one node, .* of 2 nodes the larg"),
        ([{"CPU": 9}, {"GPU": 1}], "cuda", "a worker needs 0.5 CPU and a GPU on one node, and no"),
    ],
)
def test_worker_that_fits_on_no_node_is_refused(local_ray, monkeypatch, nodes, device, message):
    import ray

    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    with pytest.raises(Stalled, match=message):
        next(stream(Cluster(None, 1), report_attempt, [1], None, device))


# --- complete jobs as separate processes ---


def start_job(photos, output, **environment):
    """Start the embed stage as a process group; it writes the file `slow` when it decodes."""
    environment["FAULT_MARKER"] = str(output.with_name("slow"))
    arguments = ["--chunk-rows", "4", "--max-error-rate", "0.9", "--backbone", "scratch"]
    arguments += ["--weights", "random", "--image-size", "32", "--workers", "2"]
    arguments += [
        "--engine",
        "torch",
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--batch-size",
        "2",
    ]
    program = "from tests.jobs.cluster.failing_workers import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "embed", "--input", str(photos), "--output", str(output),
         *arguments],
        cwd=ROOT, env={**os.environ, **environment}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_when(process, ready):
    """Kill the process group when `ready()` holds; return False if it ended before."""
    deadline = time.monotonic() + 300
    while process.poll() is None and not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    in_time = process.poll() is None
    if in_time:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return in_time


@pytest.fixture
def slow_photos(tmp_path):
    """Return a folder of 20 photos in 5 chunks that take 2 seconds each."""
    photos = draw_photos(tmp_path / "photos", 20)
    for path in photos.rglob("*.jpg"):
        append_mark(path, SLOW_DECODE)
    embed_in_process(photos, tmp_path / "whole", chunk_rows=4)
    return photos


def count_parts(output):
    return len(list(output.glob("segments/*/parts/*.parquet")))


@pytest.mark.nightly
def test_killed_job_resumes_to_identical_output(local_ray, slow_photos, tmp_path):
    output = tmp_path / "out"
    assert kill_when(start_job(slow_photos, output), lambda: count_parts(output))
    assert 0 < count_parts(output) < 5
    embed.embed(settings(slow_photos, output), Cluster(None, 2), prepared=small_model())
    assert read_tree(output) == read_tree(tmp_path / "whole")


@pytest.mark.nightly
def test_six_killed_jobs_quarantine_nothing(slow_photos, tmp_path):
    output, marker = tmp_path / "out", tmp_path / "slow"
    for _ in range(6):  # at images of the same chunks, since none is ever finished
        assert kill_when(start_job(slow_photos, output), marker.exists)
        marker.unlink()
        for part in output.glob("segments/*/parts/*.parquet"):  # written before the kill
            part.unlink()
    process = start_job(slow_photos, output)
    process.communicate()
    assert process.returncode == 0
    assert read_tree(output) == read_tree(tmp_path / "whole")


@pytest.mark.nightly
def test_machine_without_cpus_ends_with_exit_code_8(slow_photos, tmp_path):
    process = start_job(slow_photos, tmp_path / "out", FAULT_CPUS="0")
    _, message = process.communicate(timeout=300)
    assert process.returncode == 8, message
    assert "a worker needs 0.5 CPU on one node, and no node of the cluster has that" in message
