"""Defaults within two cores and 8 GiB: the kernel ends what takes more."""

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
INSIDE = f'mount --bind "$0" {CGROUP} && echo $$ > {CGROUP}/cgroup.procs && exec "$@"'


@pytest.fixture
def small():
    """Give what runs a command with two cores and 8 GiB, page cache included, and its group."""
    group = CGROUP / f"lookalike-{uuid.uuid4().hex[:8]}"
    if os.geteuid() or not os.access(CGROUP, os.W_OK) or not (CGROUP / "cgroup.procs").exists():
        pytest.skip("memory is bounded here by nobody but root with cgroup v1")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))

    def run(*words):
        command = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "taskset", "--cpu-list", "0,1", "bash", "-c", INSIDE, group, LOOKALIKE, *words,
            "--json",
        ]  # fmt: skip
        ended = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        killed = (group / "memory.oom_control").read_text()
        assert "oom_kill 0" in killed, killed
        return json.loads(ended.stdout)

    yield run
    group.rmdir()


def test_a_whole_run_of_large_photos_with_the_default_backbone(small, tmp_path):
    generator = np.random.default_rng(0)
    for name, count in (("gallery", 96), ("queries", 8)):
        (tmp_path / name).mkdir()
        for number in range(count):
            coarse = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            photo = Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC)
            photo.save(tmp_path / name / f"{number}.jpg", quality=90)
    answer = small(
        "run", "--gallery", tmp_path / "gallery", "--queries", tmp_path / "queries",
        "--output", tmp_path / "out", "--weights", "random",
    )  # fmt: skip
    assert (answer["queries"], answer["failures"]) == (8, 0)


def test_shards_as_large_as_they_are_planned(small, tmp_path):
    rows, dimension = 3_400_000, 512
    made = np.lib.format.open_memmap(tmp_path / "vectors.npy", "w+", np.float16, (rows, dimension))
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2000, dimension)).astype(np.float32)
    for first in range(0, rows, 100_000):
        own = centres[generator.integers(0, len(centres), 100_000)]
        made[first : first + 100_000] = own + generator.normal(0, 0.7, own.shape)
    queries = np.array(made[:: rows // 2000])
    del made
    np.save(tmp_path / "queries.npy", queries)
    index = small("index", "--embeddings", tmp_path / "vectors.npy", "--output", tmp_path / "index")
    assert (index["rows"], index["shards"]) == (rows, 2)
    (tmp_path / "vectors.npy").unlink()
    answer = small(
        "rank", "--index", tmp_path / "index", "--queries", tmp_path / "queries.npy",
        "--output", tmp_path / "matches",
    )  # fmt: skip
    assert answer["recall"] >= 0.95
    shutil.rmtree(tmp_path / "index")
