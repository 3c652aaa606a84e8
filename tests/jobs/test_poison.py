"""Deaths and stalls with real workers: what is harmed, and that nothing else can be told of it."""

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

from jobs.cli import _describe_error
from jobs.cluster import stall_detector, worker_failures
from jobs.cluster.actor_pool import stream
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding import embed
from retrieval.core.errors import Stalled
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.jobs.harm import KILLS, KILLS_ONCE, SLOW, harm, mark
from tests.jobs.here import embed_here, prepared
from tests.jobs.light import dies, hangs_in_2, tells, waits
from tests.trees import tree

ROOT = Path(__file__).parents[2]
PART, LEDGER = (f"segments/00000/{kind}/00000001.parquet" for kind in ("parts", "failures"))


def settings(source, output):
    return EmbedSettings(
        input=str(source), output=str(output), chunk_rows=4, max_error_rate=0.9, workers=2,
        backbone="scratch", weights="random", image_size=32,
    )  # fmt: skip


# --- one image that kills each time, and one worker that is killed once ---


@dataclass
class Harmed:
    poison: Path
    whole: dict[str, bytes]  # the store of an unharmed run
    store: Path
    said: list[str]
    run: Cluster


@pytest.fixture(scope="module")
def harmed(ray_here, tmp_path_factory):
    """12 photos in 3 chunks: the second has an image that kills, the third loses a worker once."""
    root = tmp_path_factory.mktemp("poison")
    photos = draw_photos(root / "photos", 12)
    poison = photos / "class1" / "photo0004.jpg"
    mark(poison, KILLS)
    mark(photos / "class2" / "photo0008.jpg", KILLS_ONCE)
    embed_here(photos, root / "whole", chunk_rows=4)
    said, run = [], Cluster(None, 2)
    with pytest.MonkeyPatch.context() as patch:
        harm(patch, root / "once")
        patch.setattr(stall_detector, "say", said.append)
        embed.embed(settings(photos, root / "store"), run, prepared=prepared())
    return Harmed(poison, tree(root / "whole"), root / "store", said, run)


def test_an_image_that_kills_each_time_is_found_in_three_deaths(harmed):
    deaths = [line for line in harmed.said if "chunk 1 (rows 4 to 7)" in line]
    assert deaths == [
        "a worker died in chunk 1 (rows 4 to 7): trying again, one image at a time",
        f"a worker died at {harmed.poison} (chunk 1 (rows 4 to 7)): trying again, one image at a "
        "time",
        f"a worker died again at {harmed.poison} (chunk 1 (rows 4 to 7)): the image is "
        "skipped and recorded in the ledger",
    ]
    (line,) = pq.read_table(harmed.store / LEDGER).to_pylist()
    assert line["path"] == str(harmed.poison)
    assert (line["stage"], line["error"]) == ("embed", "WorkerDied")
    assert line["message"] == "the worker died each time it had this image at hand"


def test_the_rest_of_its_chunk_is_what_it_would_be(harmed):
    whole = pq.read_table(harmed.store.with_name("whole") / PART).to_pylist()
    left = pq.read_table(harmed.store / PART).to_pylist()
    assert left == [row for row in whole if row["path"] != str(harmed.poison)]
    assert len(left) == 3


def test_a_worker_that_is_killed_costs_nothing_and_all_else_has_the_same_bytes(harmed):
    assert "a worker died in chunk 2 (rows 8 to 11): trying again" in " ".join(harmed.said)
    assert len(harmed.said) == 4
    harmed_files = {PART, LEDGER, "files.parquet", "manifest.json", "job.json"}
    store = tree(harmed.store)
    assert store.keys() - {LEDGER} == harmed.whole.keys()
    for path in harmed.whole.keys() - harmed_files:
        assert store[path] == harmed.whole[path], path
    assert {verdict.state for verdict in verify(open_folder(str(harmed.store)))} == {"finished"}


# --- light workers ---


def test_later_steps_of_a_run_know_the_image_too(harmed):
    later = list(stream(harmed.run, tells, [1], None, "cpu"))
    assert later == [{"n": 1, "given_up": [str(harmed.poison)]}]


@pytest.mark.nightly  # 10 deaths
def test_work_that_always_dies_at_no_image_is_refused(ray_here):
    with pytest.raises(Stalled, match=r"item 1 killed its worker 10 times, and no single image"):
        list(stream(Cluster(None, 1), dies, [1], None, "cpu"))


@pytest.fixture
def let_go(ray_here, tmp_path):
    """A file that ends what hangs; waits for what a job's own end would end."""
    yield tmp_path / "let go"
    (tmp_path / "let go").touch()
    for thread in threading.enumerate():
        if thread.name == stall_detector.ANSWER_THREAD:
            thread.join(60)


@pytest.mark.nightly
def test_a_book_that_is_lost_does_no_harm(let_go, monkeypatch):
    import ray

    books, open_book = [], worker_failures.start_failure_log

    def kept(given_up):
        books.append(open_book(given_up))
        return books[-1]

    def kill():
        while not ray.get(books[0].summary.remote()).begun:
            time.sleep(0.1)
        ray.kill(books[0], no_restart=False)
        let_go.touch()

    monkeypatch.setattr(worker_failures, "start_failure_log", kept)
    answers = stream(Cluster(None, 1), waits, [1, 2], let_go, "cpu")
    killer = threading.Timer(3, kill)  # when the book is open
    killer.start()
    assert sorted(answer["item"] for answer in answers) == [1, 2]
    killer.join()


def test_an_image_that_does_not_answer_is_named(let_go, monkeypatch):
    """Ray may keep the answer of the first until the second is there."""
    monkeypatch.setattr(stall_detector, "STALL_SECONDS", 20.0)  # starting takes some
    answers = stream(Cluster(None, 1), hangs_in_2, [1, 2], let_go, "cpu")
    why = r"item 2 waits for /photos/x.jpg, .* since \d+ s"
    given = []
    with pytest.raises(Stalled, match=why) as stalled:
        given.extend(answers)
    assert given in ([], [{"item": 1}])
    assert "what is finished is kept, run the same command again" in str(stalled.value)
    assert _describe_error(stalled.value) == (str(stalled.value), 8)


def test_a_cluster_that_others_have_booked_is_named(let_go, monkeypatch):
    import ray

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class Other:
        def is_there(self):
            return True

    other = Other.remote()
    assert ray.get(other.is_there.remote(), timeout=60)
    monkeypatch.setattr(stall_detector, "STALL_SECONDS", 3.0)
    said = (
        r"no worker has begun, 1 workers of 0.5 CPU wait for a place \(of the cluster's (\d+) "
        r"CPUs \1 are booked\)"
    )
    try:
        with pytest.raises(Stalled, match=said):
            next(stream(Cluster(None, 1), tells, [1], None, "cpu"))
    finally:
        ray.kill(other)


@pytest.mark.parametrize(
    ("nodes", "device", "said"),
    [
        ([{}, {"CPU": 0.25}], "cpu", "a worker wants 0.5 CPU of one node, .* of 2 nodes the larg"),
        ([{"CPU": 9}, {"GPU": 1}], "cuda", "a worker wants 0.5 CPU and a GPU of one node, and no"),
    ],
)
def test_a_schedule_that_no_node_can_take_is_refused_at_once(
    ray_here, monkeypatch, nodes, device, said
):
    import ray

    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    with pytest.raises(Stalled, match=said):
        next(stream(Cluster(None, 1), tells, [1], None, device))


# --- whole jobs, as processes of their own ---


def job(photos, output, **environment):
    """Start the embed stage as a process group of its own; the file `slow` tells when it works."""
    environment["HARM_ONCE"] = str(output.with_name("slow"))
    words = ["--chunk-rows", "4", "--max-error-rate", "0.9", "--backbone", "scratch"]
    words += ["--weights", "random", "--image-size", "32", "--workers", "2"]
    words += ["--engine", "torch", "--precision", "fp32", "--device", "cpu", "--batch-size", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", "from tests.jobs.harm import main; main()", "embed",
         "--input", str(photos), "--output", str(output), *words],
        cwd=ROOT, env={**os.environ, **environment}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_at(process, ready):
    """Kill the whole group once something has come about; tells whether it was in time."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    in_time = process.poll() is None
    if in_time:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return in_time


@pytest.fixture
def slow(tmp_path):
    """20 photos in 5 chunks that take 2 seconds each."""
    photos = draw_photos(tmp_path / "photos", 20)
    for path in photos.rglob("*.jpg"):
        mark(path, SLOW)
    embed_here(photos, tmp_path / "whole", chunk_rows=4)
    return photos


def parts(output):
    return len(list(output.glob("segments/*/parts/*.parquet")))


@pytest.mark.nightly
def test_a_job_that_is_killed_as_a_whole_goes_on_to_the_same_bytes(ray_here, slow, tmp_path):
    output = tmp_path / "out"
    assert kill_at(job(slow, output), lambda: parts(output))
    assert 0 < parts(output) < 5
    embed.embed(settings(slow, output), Cluster(None, 2), prepared=prepared())
    assert tree(output) == tree(tmp_path / "whole")


@pytest.mark.nightly
def test_six_kills_of_the_whole_job_quarantine_nothing(slow, tmp_path):
    output, at_hand = tmp_path / "out", tmp_path / "slow"
    for _ in range(6):  # always at images of the same chunks, since none is ever finished
        assert kill_at(job(slow, output), at_hand.exists)
        at_hand.unlink()
        for part in output.glob("segments/*/parts/*.parquet"):  # of a worker that died too late
            part.unlink()
    process = job(slow, output)
    process.communicate()
    assert process.returncode == 0
    assert tree(output) == tree(tmp_path / "whole")


@pytest.mark.nightly
def test_a_machine_without_a_cpu_ends_with_8_at_once(slow, tmp_path):
    process = job(slow, tmp_path / "out", HARM_CPUS="0")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 8, said
    assert "a worker wants 0.5 CPU of one node, and no node of the cluster has that" in said
