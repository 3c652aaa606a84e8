"""Test the check that all nodes of a cluster see the same local folders."""

import os

import pytest

from jobs.cluster import shared_paths
from jobs.cluster.shared_paths import SharedPath, check_shared_paths, find_unseen, list_shared_paths
from jobs.config.settings import RankSettings, RunSettings
from retrieval.core.errors import UsageError


def test_list_shared_paths_returns_local_inputs_and_outputs():
    run_settings = RunSettings(
        gallery="s3://bucket/gallery", queries="queries", output="/out", labels="labels.csv",
        temp_dir="/fast",
    )  # fmt: skip
    paths = list_shared_paths(run_settings)
    assert [(path.flag, path.written) for path in paths] == [
        ("--output", True),
        ("--queries", False),
    ]
    assert all(path.path.startswith("/") for path in paths)
    settings = RankSettings(
        index="file:///index", queries="s3://bucket/q", output="gs://bucket/out"
    )
    assert list_shared_paths(settings) == [SharedPath("--index", "/index", False)]
    home_settings = RankSettings(index="~/index", queries="s3://bucket/q", output="gs://bucket/out")
    assert list_shared_paths(home_settings) == [
        SharedPath("--index", os.path.expanduser("~/index"), False)
    ]


@pytest.fixture
def add_node(monkeypatch):
    """Return a function that adds a node on which `find_unseen` is replaced."""

    def add(find_unseen_on_node):
        def find_unseen_by_node(nodes, marks, tokens):
            return [(address, find_unseen_on_node(marks, tokens)) for address in nodes.values()]

        monkeypatch.setattr(shared_paths, "_other_nodes", lambda: {"some-id": "10.0.0.7"})
        monkeypatch.setattr(shared_paths, "_find_unseen_by_node", find_unseen_by_node)

    return add


@pytest.fixture
def shared(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    inputs = [
        SharedPath("--gallery", str(tmp_path / name), False) for name in ("photos", "list.csv")
    ]
    return [*inputs, SharedPath("--output", str(tmp_path / "new" / "out"), True)]


def test_node_that_sees_the_same_files_is_accepted(add_node, shared, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    add_node(find_unseen)
    check_shared_paths(shared)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("index", range(3))
def test_node_that_sees_another_folder_is_named(add_node, shared, index):
    shared_path = shared[index]

    def find_unseen_on_node(marks, tokens):
        if shared_path.written:
            file, _ = tokens[shared_path.path]
            return find_unseen(marks, {shared_path.path: (file, "another text")})
        inode, size = marks[shared_path.path]
        return find_unseen({**marks, shared_path.path: (inode + 1, size)}, tokens)

    add_node(find_unseen_on_node)
    message = (
        rf"^{shared_path.flag} {shared_path.path} is a local path, and node 10\.0\.0\.7 does not "
        "see the same"
    )
    with pytest.raises(UsageError, match=message):
        check_shared_paths(shared)


def test_missing_files_and_other_sizes_are_unseen(shared, tmp_path):
    path = shared[1].path
    inode, size = shared_paths._identify(path)
    assert find_unseen({path: (inode, size + 1)}, {}) == [path]
    assert find_unseen({str(tmp_path / "gone"): (1, 0)}, {}) == [str(tmp_path / "gone")]
    assert find_unseen({}, {"/out": (str(tmp_path / "no-token"), "text")}) == ["/out"]


def test_path_missing_on_the_driver_is_not_reported(add_node, tmp_path):
    add_node(find_unseen)
    check_shared_paths([SharedPath("--gallery", str(tmp_path / "gone"), False)])
