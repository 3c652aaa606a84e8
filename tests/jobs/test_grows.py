"""A cluster that begins with a head alone and grows: `--workers` says how far."""

import json

import pytest

from tests.commands import SMALL, lookalike_here
from tests.nodes import Nodes, Running

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

HEAD = "f" * 51 + "00000"
"""The name that Ray's provider of nodes on the same machine gives to the head."""

SETTINGS = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD, "RAY_CLOUD_INSTANCE_ID": HEAD,
}  # fmt: skip


def configuration(address):
    """Give what `ray up` would read, of a provider that starts nodes on this machine."""
    node = {"node_config": {}, "min_workers": 0}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray",
                "worker_start_ray")  # fmt: skip
    return {
        **{f"{name}_commands": [] for name in commands}, "auth": {}, "docker": {},
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "cluster_name": "grows", "max_workers": 2, "upscaling_speed": 20,
        "idle_timeout_minutes": 5, "head_node_type": "ray.head.default",
        "provider": {"type": "fake_multinode", "gcs_address": address, "launch_multiple": True,
                     "head_node_id": HEAD},
        "available_node_types": {
            "ray.head.default": {**node, "resources": {"CPU": 0}, "max_workers": 0},
            "worker": {**node, "resources": {"CPU": 1}, "max_workers": 2},
        },
    }  # fmt: skip


@pytest.fixture
def growing(tmp_path):
    nodes = Nodes(tmp_path, SETTINGS)
    try:
        file = tmp_path / "autoscaling.json"
        file.write_text(json.dumps(configuration(f"127.0.0.1:{nodes.gcs}")))
        nodes.head = (f"--autoscaling-config={file}",)
        nodes.start_head()
        yield nodes
    finally:
        nodes.close()


def test_workers_that_wait_for_a_place_bring_nodes(growing, photos, tmp_path):
    words = ["--input", photos("photos", 12), "--output", tmp_path / "out", *SMALL]
    words += ["--chunk-rows", 1, "--ray-address", growing.address]
    refused = Running("embed", *words, env=growing.environment).ended(120)
    assert refused.code == 8
    assert "no node of the cluster has that" in refused.error
    ended = Running("embed", *words, "--workers", 4, env=growing.environment).ended(300)
    assert ended.code == 0, ended.err  # the head itself has no CPU
    assert lookalike_here("verify", tmp_path / "out").code == 0
