"""Local folders on a cluster of several nodes: each node must see the same ones."""

import os

import pytest

from jobs.cluster import shared_paths
from jobs.cluster.shared_paths import SharedPath, check_shared_paths, find_unseen, list_shared_paths
from jobs.config.settings import RankSettings, RunSettings
from retrieval.core.errors import UsageError


def test_places_are_the_local_paths_that_workers_need():
    asked = RunSettings(
        gallery="s3://bucket/gallery", queries="queries", output="/out", labels="labels.csv",
        temp_dir="/fast",
    )  # fmt: skip
    found = list_shared_paths(asked)
    assert [(one.flag, one.written) for one in found] == [("--output", True), ("--queries", False)]
    assert all(one.path.startswith("/") for one in found)
    rank = RankSettings(index="file:///index", queries="s3://bucket/q", output="gs://bucket/out")
    assert list_shared_paths(rank) == [SharedPath("--index", "/index", False)]
    home = RankSettings(index="~/index", queries="s3://bucket/q", output="gs://bucket/out")
    assert list_shared_paths(home) == [SharedPath("--index", os.path.expanduser("~/index"), False)]


@pytest.fixture
def nodes(monkeypatch):
    """Let there be another node, which sees what `look` gives."""

    def let(look):
        def ask(nodes, marks, tokens):
            return [(address, look(marks, tokens)) for address in nodes.values()]

        monkeypatch.setattr(shared_paths, "_other_nodes", lambda: {"some-id": "10.0.0.7"})
        monkeypatch.setattr(shared_paths, "_find_unseen_by_node", ask)

    return let


@pytest.fixture
def places(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    read = [SharedPath("--gallery", str(tmp_path / name), False) for name in ("photos", "list.csv")]
    return [*read, SharedPath("--output", str(tmp_path / "new" / "out"), True)]


def test_a_node_that_sees_the_same_is_fine_and_nothing_is_left(nodes, places, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    nodes(find_unseen)
    check_shared_paths(places)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("which", range(3))
def test_a_node_that_sees_another_folder_is_named(nodes, places, which):
    place = places[which]

    def look(marks, tokens):
        if place.written:
            file, _ = tokens[place.path]
            return find_unseen(marks, {place.path: (file, "another text")})
        inode, size = marks[place.path]
        return find_unseen({**marks, place.path: (inode + 1, size)}, tokens)

    nodes(look)
    said = (
        rf"^{place.flag} {place.path} is a local path, and node 10\.0\.0\.7 does not see the same"
    )
    with pytest.raises(UsageError, match=said):
        check_shared_paths(places)


def test_a_file_that_has_another_length_there_and_one_that_is_missing_are_others(places, tmp_path):
    path = places[1].path
    inode, size = shared_paths._identify(path)
    assert find_unseen({path: (inode, size + 1)}, {}) == [path]
    assert find_unseen({str(tmp_path / "gone"): (1, 0)}, {}) == [str(tmp_path / "gone")]
    assert find_unseen({}, {"/out": (str(tmp_path / "no-token"), "text")}) == ["/out"]


def test_what_is_missing_for_the_driver_too_is_for_others_to_say(nodes, tmp_path):
    nodes(find_unseen)
    check_shared_paths([SharedPath("--gallery", str(tmp_path / "gone"), False)])
