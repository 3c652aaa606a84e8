"""What goes wrong at the edges: exit code and one sentence.

A process of its own where how it ends is the point: before Ray, after Ray has started, by Ctrl-C.
"""

import os
import signal
import subprocess
import tempfile
import time
import urllib.request

import psutil
import pytest

from tests.commands import LOOKALIKE, SMALL, lookalike, lookalike_here

pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture
def folders(photos, tmp_path):
    """Words that name a gallery, queries and an output."""
    return {
        "--gallery": photos("gallery"),
        "--queries": photos("queries", 3, seed=1),
        "--output": tmp_path / "out",
    }


def run(folders, *more, command=lookalike_here):
    words = [word for pair in folders.items() for word in pair]
    return command("run", *words, *more)


def test_a_missing_folder(folders, tmp_path):
    ended = run({**folders, "--gallery": tmp_path / "nowhere"}, *SMALL, command=lookalike)
    assert ended.code == 3
    assert "nowhere does not exist" in ended.error
    assert not (tmp_path / "out").exists()


def test_an_empty_folder(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = run({**folders, "--queries": tmp_path / "empty"}, *SMALL)
    assert ended.code == 3
    assert "empty holds no images" in ended.error
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    ended = run({**folders, "--output": tmp_path / "file" / "out"}, *SMALL)
    assert ended.code == 2
    assert "--output" in ended.error
    assert "cannot be written" in ended.error


def test_an_output_that_is_somebody_elses(folders, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    ended = run({**folders, "--output": tmp_path / "home"}, *SMALL, "--overwrite")
    assert ended.code == 2
    assert "letter.txt" in ended.error
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_an_unknown_backbone_names_near_ones(folders):
    ended = run(folders, "--backbone", "resnet5", "--weights", "random")
    assert ended.code == 2
    assert "resnet50" in ended.error


def test_weights_that_cannot_be_fetched_name_the_ways_out(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # knows the proxy of the first request
    ended = run(folders, "--backbone", "squeezenet1_1")
    assert ended.code == 3
    assert "--weights" in ended.error
    assert "--bundle" in ended.error


@pytest.mark.parametrize(
    "content", [b"\x80\x04N.", *(pytest.param(b, marks=pytest.mark.nightly) for b in (b"", b"no"))]
)
def test_weights_that_are_none(folders, tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    ended = run(
        folders, "--backbone", "scratch", "--weights", tmp_path / "w.pth", command=lookalike
    )  # Ray has started
    assert ended.code == 3
    assert "w.pth" in ended.error


def test_what_is_no_output_of_ours(tmp_path):
    for verb, option in (("evaluate", "--matches"), ("report", "--matches")):
        more = ("--output", tmp_path / "r.html") if verb == "report" else ()
        ended = lookalike_here(verb, option, tmp_path / "nothing", *more)
        assert ended.code == 3
        assert "nothing" in ended.error


def test_verify_says_how_it_stands(tmp_path):
    assert lookalike_here("verify", tmp_path / "nowhere").code == 3
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "other.txt").write_text("x")
    assert lookalike_here("verify", tmp_path / "files").code == 7


@pytest.mark.nightly
def test_top_k_above_the_gallery_gives_what_there_is_and_says_so_once(folders):
    ended = run(folders, *SMALL, "--top-k", "50", "--json")
    assert ended.code == 0, ended.err
    assert ended.err.count("--top-k 50 is more than the gallery has") == 1
    assert ended.values["queries"] == 3
    assert ended.values["Success@1"] == 1.0
    again = run(folders, *SMALL, "--top-k", "49")
    assert again.code == 6
    assert "top_k was 50, is 49" in again.error
    assert lookalike_here("verify", folders["--output"]).code == 0


def test_interrupted_it_keeps_what_is_finished_and_goes_on(folders):
    words = [str(word) for pair in folders.items() for word in pair]
    command = [LOOKALIKE, "run", *words, *SMALL, "--chunk-rows", "1", "--workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    parts = folders["--output"] / "gallery/segments/00000/parts"
    deadline = time.monotonic() + 120
    while not (parts.is_dir() and list(parts.glob("0*"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "error: interrupted" in err
    assert lookalike_here("verify", folders["--output"]).code == 3
    ended = run(folders, *SMALL, "--chunk-rows", "1", "--workers", "1")
    assert ended.code == 0, ended.err
    assert lookalike_here("verify", folders["--output"]).code == 0


def test_terminated_in_an_odd_place_it_leaves_no_process_and_no_folder(folders, tmp_path):
    """A home that cannot be written, and a user's own modules where the command is started."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("torch", "numpy", "pyarrow", "json"):
        (mine / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    words = ["embed", "--input", folders["--gallery"], "--output", folders["--output"], *SMALL]
    words += ["--chunk-rows", "1", "--workers", "1"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with tempfile.TemporaryDirectory(prefix="la", dir="/tmp") as short:
        process = subprocess.Popen(
            [LOOKALIKE, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=mine,
            env={**kept, "HOME": "/proc/nonexistent", "TMPDIR": short, "PYTHONPATH": ":"},
        )  # fmt: skip
        parts = folders["--output"] / "segments/00000/parts"
        deadline = time.monotonic() + 120
        while not (parts.is_dir() and list(parts.glob("0*"))) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (143, ""), err
        assert err.startswith("error: terminated; what is finished is kept")
        assert len(err.splitlines()) == 1
        assert len(started) > 2
        assert psutil.wait_procs(started, timeout=10)[1] == []
        assert os.listdir(short) == []
    assert list(parts.glob("0*"))
    ended = lookalike_here(*words)
    assert ended.code == 0, ended.err
