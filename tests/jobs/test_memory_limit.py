"""Test that the default settings fit into two cores and 8 GiB, enforced by the kernel."""

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import LOOKALIKE

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]

LIMIT = 8 << 30
CGROUP = Path("/sys/fs/cgroup/memory")
_CGROUP_SCRIPT = f'mount --bind "$0" {CGROUP} && echo $$ > {CGROUP}/cgroup.procs && exec "$@"'


@pytest.fixture
def run_limited():
    """Return a function that runs a command in a cgroup with two cores and 8 GiB.

    The limit includes the page cache. The function returns the JSON output.
    """
    group = CGROUP / f"lookalike-{uuid.uuid4().hex[:8]}"
    if os.geteuid() or not os.access(CGROUP, os.W_OK) or not (CGROUP / "cgroup.procs").exists():
        pytest.skip("limiting memory requires root and cgroup v1")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))

    def run(*arguments):
        command = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "taskset", "--cpu-list", "0,1", "bash", "-c", _CGROUP_SCRIPT, group,
            LOOKALIKE, *arguments, "--json",
        ]  # fmt: skip
        completed = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False
        )
        assert completed.returncode == 0, completed.stderr[-3000:]
        oom_control = (group / "memory.oom_control").read_text()
        assert "oom_kill 0" in oom_control, oom_control
        return json.loads(completed.stdout)

    yield run
    group.rmdir()


def test_run_with_large_photos_and_default_backbone(run_limited, tmp_path):
    generator = np.random.default_rng(0)
    for name, count in (("gallery", 96), ("queries", 8)):
        (tmp_path / name).mkdir()
        for number in range(count):
            noise = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            photo = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
            photo.save(tmp_path / name / f"{number}.jpg", quality=90)
    result = run_limited(
        "run", "--gallery", tmp_path / "gallery", "--queries", tmp_path / "queries",
        "--output", tmp_path / "out", "--weights", "random",
    )  # fmt: skip
    assert (result["queries"], result["failures"]) == (8, 0)


def test_index_and_rank_with_maximum_shard_size(run_limited, tmp_path):
    rows, dimension = 3_400_000, 512
    vectors = np.lib.format.open_memmap(
        tmp_path / "vectors.npy", "w+", np.float16, (rows, dimension)
    )
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2000, dimension)).astype(np.float32)
    for first in range(0, rows, 100_000):
        cluster_centres = centres[generator.integers(0, len(centres), 100_000)]
        vectors[first : first + 100_000] = cluster_centres + generator.normal(
            0, 0.7, cluster_centres.shape
        )
    queries = np.array(vectors[:: rows // 2000])
    del vectors
    np.save(tmp_path / "queries.npy", queries)
    result = run_limited(
        "index", "--embeddings", tmp_path / "vectors.npy", "--output", tmp_path / "index"
    )
    assert (result["rows"], result["shards"]) == (rows, 2)
    (tmp_path / "vectors.npy").unlink()
    result = run_limited(
        "rank", "--index", tmp_path / "index", "--queries", tmp_path / "queries.npy",
        "--output", tmp_path / "matches",
    )  # fmt: skip
    assert result["recall"] >= 0.95
    shutil.rmtree(tmp_path / "index")
