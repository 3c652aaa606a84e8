"""Test decoding in tasks on any node for workers that only embed, on nodes with a simulated GPU."""

import pyarrow.parquet as pq
import pytest

from jobs.cluster import stall_detector
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding import embed
from retrieval.embedding import decoded_batch
from tests import ray_nodes
from tests.commands import SMALL_MODEL_OPTIONS, run_command_in_process
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.cluster.failing_workers import KILL_ALWAYS, append_mark, inject_worker_faults
from tests.jobs.in_process import embed_in_process, small_model, without_ray
from tests.ray_nodes import RunningCommand

TIMEOUT = 240
NODE_WITH_GPU, NODE_WITHOUT_GPU = ray_nodes.WORKER_NODES


@pytest.mark.parametrize(
    ("decoding", "device", "nodes", "expected"),
    [
        ("auto", "cuda", [{"CPU": 0.0}, {"CPU": 16.0, "GPU": 1.0}], False),
        ("auto", "cuda", [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 1.0}], True),
        ("auto", "cpu", [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 1.0}], False),
        ("fused", "cuda", [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 1.0}], False),
        ("separate", "cpu", [{"CPU": 2.0}], True),
    ],
)
def test_separate_decoding_uses_nodes_without_gpu(monkeypatch, decoding, device, nodes, expected):
    monkeypatch.setattr(Cluster, "_nodes", lambda self: nodes)
    assert Cluster("nowhere", 1, decoding=decoding).decodes_separately(device) == expected


def test_image_that_kills_a_decoding_task_is_recorded(local_ray, tmp_path, monkeypatch):
    photos, log = draw_photos(tmp_path / "photos", 12), []
    killing_image = photos / "class1" / "photo0004.jpg"
    embed_in_process(photos, tmp_path / "whole", chunk_rows=8)
    append_mark(killing_image, KILL_ALWAYS)
    inject_worker_faults(monkeypatch, tmp_path / "once")
    monkeypatch.setattr(stall_detector, "print_message", log.append)
    monkeypatch.setattr(decoded_batch, "MAX_IMAGES", 3)
    settings = EmbedSettings(
        input=str(photos), output=str(tmp_path / "store"), chunk_rows=8, max_error_rate=0.9,
        backbone="scratch", weights="random", image_size=32,
    )  # fmt: skip
    embed.embed(settings, Cluster(None, 2, decoding="separate"), prepared=small_model())
    batch = "rows 3 to 5 of chunk 0"
    assert [line for line in log if batch in line] == [
        f"a worker died in {batch}: trying again, one image at a time",
        f"a worker died at {killing_image} ({batch}): trying again, one image at a time",
        f"a worker died again at {killing_image} ({batch}): the image is skipped and recorded in "
        "the ledger",
    ]
    (failure,) = pq.read_table(tmp_path / "store" / "segments/00000/failures").to_pylist()
    assert (failure["path"], failure["error"]) == (str(killing_image), "WorkerDied")
    rows = pq.read_table(tmp_path / "store" / "segments/00000/parts").to_pylist()
    whole = pq.read_table(tmp_path / "whole" / "segments/00000/parts").to_pylist()
    assert rows == [row for row in whole if row["path"] != str(killing_image)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Yield a cluster of a node with a simulated GPU and one without."""
    arguments = {NODE_WITH_GPU: ("--num-gpus=1",)}
    folder = tmp_path_factory.mktemp("nodes")
    with ray_nodes.ray_cluster(folder, node_arguments=arguments) as cluster:
        yield cluster


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("node", "operation"),
    [(NODE_WITHOUT_GPU, "read .*listing"), (NODE_WITH_GPU, "write .*/parts/")],
)
def test_lost_node_does_not_change_the_output(cluster, tmp_path, node, operation):
    """A node without a GPU only decodes, so it is decoding when it reads the listing."""
    output = tmp_path / "out"
    arguments = [
        "embed", "--input", draw_photos(tmp_path / "photos", 40), *SMALL_MODEL_OPTIONS,
        "--chunk-rows", 4, "--output", output, "--device", "cpu",
    ]  # fmt: skip
    with without_ray():
        assert run_command_in_process(*arguments).exit_code == 0
    output.rename(tmp_path / "whole")
    cluster.restore()
    cluster.pause_all_at(operation)
    address = ["--ray-address", cluster.address]
    command = RunningCommand(
        *arguments, "--decoding", "separate", *address, env=cluster.environment
    )
    cluster.wait_until_paused(node, command, TIMEOUT)
    cluster.kill(node)
    if node == NODE_WITH_GPU:  # no other node can embed
        cluster.restore()
    result = command.wait(TIMEOUT)
    assert result.exit_code == 0, result.stderr
    assert read_tree(output, include_temporary=False) == read_tree(tmp_path / "whole")
