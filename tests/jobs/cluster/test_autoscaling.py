"""Test that `--workers` makes a cluster without worker nodes scale up."""

import json

import pytest

from tests.commands import SMALL_MODEL_OPTIONS, run_command_in_process
from tests.ray_nodes import RayNodes, RunningCommand

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

HEAD = "f" * 51 + "00000"
"""Node id that Ray's fake_multinode provider gives to the head."""

SETTINGS = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD, "RAY_CLOUD_INSTANCE_ID": HEAD,
}  # fmt: skip


def autoscaler_config(address):
    """Return an autoscaler configuration for the provider that starts nodes on this machine."""
    node = {"node_config": {}, "min_workers": 0}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray",
                "worker_start_ray")  # fmt: skip
    return {
        **{f"{name}_commands": [] for name in commands}, "auth": {}, "docker": {},
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "cluster_name": "scaling", "max_workers": 2, "upscaling_speed": 20,
        "idle_timeout_minutes": 5, "head_node_type": "ray.head.default",
        "provider": {"type": "fake_multinode", "gcs_address": address, "launch_multiple": True,
                     "head_node_id": HEAD},
        "available_node_types": {
            "ray.head.default": {**node, "resources": {"CPU": 0}, "max_workers": 0},
            "worker": {**node, "resources": {"CPU": 1}, "max_workers": 2},
        },
    }  # fmt: skip


@pytest.fixture
def scaling_cluster(tmp_path):
    cluster = RayNodes(tmp_path, SETTINGS)
    try:
        file = tmp_path / "autoscaling.json"
        file.write_text(json.dumps(autoscaler_config(f"127.0.0.1:{cluster.gcs}")))
        cluster.head_arguments = (f"--autoscaling-config={file}",)
        cluster.start_head()
        yield cluster
    finally:
        cluster.close()


def test_pending_workers_scale_up_the_cluster(scaling_cluster, photos, tmp_path):
    arguments = [
        "--input",
        photos("photos", 12),
        "--output",
        tmp_path / "out",
        *SMALL_MODEL_OPTIONS,
    ]
    arguments += ["--chunk-rows", 1, "--ray-address", scaling_cluster.address]
    result = RunningCommand("embed", *arguments, env=scaling_cluster.environment).wait(300)
    assert result.exit_code == 8
    assert "no node of the cluster has that" in result.error
    result = RunningCommand(
        "embed", *arguments, "--workers", 4, env=scaling_cluster.environment
    ).wait(300)
    assert result.exit_code == 0, result.stderr  # the head itself has no CPU
    assert run_command_in_process("verify", tmp_path / "out").exit_code == 0
