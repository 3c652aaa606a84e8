"""Test commands called from Python: results, errors, threads, event loops, interrupts, a Ray.

Commands connect to the Ray of the tests, as beside a Ray that a user has started.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

import lookalike
from jobs.cluster import session
from retrieval.storage.local import LocalFolder
from tests.retrieval.storage.outputs import make_finished_output

SMALL_MODEL = {"backbone": "scratch", "weights": "random", "image_size": 32}


@pytest.fixture
def output(tmp_path):
    """Return the path of a finished output."""
    make_finished_output(LocalFolder(str(tmp_path / "out")), "predictions")
    return tmp_path / "out"


def state_of_process():
    """Return what a command must not change in the process that calls it."""
    import ray

    return (
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ),
        os.readlink("/proc/self/fd/1"), os.readlink("/proc/self/fd/2"), sys.path[:],
        ray.is_initialized(), ray.is_initialized() and ray.get_runtime_context().gcs_address,
        session.running_session(),
    )  # fmt: skip


@pytest.mark.nightly
def test_stages_beside_a_ray_of_the_user(local_ray, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gallery, new = photos("gallery", 12), photos("new", 3, seed=1)
    before = state_of_process()
    store = lookalike.embed(input=gallery, output="store", **SMALL_MODEL)
    assert (store.verb, store.rows, store["rows"], store.exit_code) == ("embed", 12, 12, 0)
    assert store.text.startswith("12 of 12 images embedded")
    assert {"output", "rows"} <= set(store) & set(dir(store))
    index = lookalike.index(embeddings=store, output="index")
    images = [Image.open(path) for path in sorted(new.rglob("*.jpg"))]
    matches = lookalike.rank(index=index, queries=images, output="matches", top_k=3)
    ranked = matches.matches().to_arrow()
    assert ranked["query_id"].to_pylist()[::3] == ["000000.png", "000001.png", "000002.png"]
    assert matches._repr_html_().count("<img") == 12
    paths = sorted(map(str, new.rglob("*.jpg")))
    searched = index.index().search(paths, k=3).to_arrow()
    assert searched["image_id"].to_pylist() == ranked["image_id"].to_pylist()

    labels = pd.DataFrame({
        "image_id": [*ranked["query_id"].to_pylist()[::3], *store.store().to_pandas()["image_id"]],
        "label": ["class0", "class1", "class2", *store.store().to_pandas()["label"]],
    })  # fmt: skip
    measured = lookalike.evaluate(matches=matches, labels=labels)
    assert 0 <= measured.AP <= 1
    with pytest.raises(lookalike.BelowBound) as below:
        lookalike.evaluate(matches=matches, labels=labels, fail_below="AP=0.9")
    assert below.value.exit_code == 5
    assert below.value.result.AP == measured.AP

    lookalike.report(matches=matches, output="report.html")
    assert (tmp_path / "report.html").exists()
    verified = lookalike.verify(matches)
    assert verified.state == "finished"
    assert capsys.readouterr().out == ""
    assert state_of_process() == before


@pytest.mark.nightly
def test_other_commands_beside_a_ray_of_the_user(local_ray, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gallery, new = photos("gallery", 12), photos("new", 3, seed=1)
    before = state_of_process()
    images = [Image.open(path) for path in sorted(new.rglob("*.jpg"))]
    paths = sorted(map(str, new.rglob("*.jpg")))
    ran = lookalike.run(gallery=gallery, queries=paths, output="run", top_k=2, **SMALL_MODEL)
    assert ran.matches().to_arrow()["query_id"].to_pylist()[::2] == paths
    assert (len(ran.store()), len(ran.store("queries")), len(ran.index())) == (12, 3, 12)
    again = lookalike.run(gallery=gallery, queries=paths, output="run", top_k=2, **SMALL_MODEL)
    assert again == ran
    assert "nothing to do: run is finished" in capsys.readouterr().err
    bundle = lookalike.train(data=gallery, output="model", epochs=1, image_size=32)
    predicted = lookalike.predict(input=paths, bundle=bundle, output="classes")
    assert predicted.images == 3
    listed = lookalike.compare(backbones="resnet18")
    assert "resnet18" in listed.text
    with pytest.raises(lookalike.UsageError, match="the result of compare has no matches"):
        listed.matches()
    with pytest.raises(TypeError, match="the result of compare is not an output"):
        os.fspath(listed)
    with pytest.raises(AttributeError, match="has no value colour"):
        _ = listed.colour
    planned = lookalike.plan(gallery=gallery, queries=images, sample=16, **SMALL_MODEL)
    assert planned.text
    assert capsys.readouterr().out == ""
    assert state_of_process() == before


def test_errors_are_those_of_the_command_line(output, tmp_path):
    with pytest.raises(lookalike.InputError, match=r"nowhere is not an output") as error:
        lookalike.evaluate(matches=tmp_path / "nowhere")
    assert error.value.exit_code == 3
    assert error.value.result is None
    (file,) = output.glob("predictions/*.parquet")
    file.write_bytes(b"")
    with pytest.raises(lookalike.Damaged) as damaged:
        lookalike.verify(output)
    assert damaged.value.exit_code == 7
    assert damaged.value.result.state == "damaged"
    assert str(file) in str(damaged.value)


def test_unexpected_error_has_the_traceback_of_the_command():
    with pytest.raises(lookalike.LookalikeError, match=r"^unexpected ValueError: .*null") as error:
        lookalike.verify("a\0b")
    assert error.value.exit_code == 1
    assert "in run_verb" in error.value.__notes__[0]


def test_threads_and_event_loops(output):
    async def verify():
        return lookalike.verify(output)

    assert asyncio.run(verify()).state == "finished"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lookalike.verify, [output, output]))
    assert [result.state for result in results] == ["finished"] * 2


def when_child_runs(action):
    """Call `action` with the child process of a command as soon as it runs, on a thread."""
    # psutil reads all processes, which may take longer than the command
    listed = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children")

    def wait():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for pid in listed.read_text().split():
                with suppress(psutil.NoSuchProcess):
                    child = psutil.Process(int(pid))
                    if "lookalike.child_process" in " ".join(child.cmdline()):
                        children.append(child)
                        action(child)
                        return
            time.sleep(0.02)

    children = []
    threading.Thread(target=wait).start()
    return children


def test_interrupt_ends_the_command(output):
    code = (
        "import signal, sys, lookalike\n"
        # a shell that starts the tests in the background lets them ignore interrupts
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try: lookalike.verify(sys.argv[1])\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True
    )
    children = wait_for_children(caller)
    for child in children:
        child.suspend()  # so that it cannot end before the interrupt arrives
    caller.send_signal(signal.SIGINT)
    for child in children:
        child.resume()
    printed, _ = caller.communicate(timeout=60)
    assert printed == "interrupted\n"
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert lookalike.verify(output).state == "finished"


def wait_for_children(caller):
    """Wait until a process has started the process of a command, and return its children."""
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(caller.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return children


def test_killed_command_is_an_error(output):
    when_child_runs(lambda child: child.kill())
    with pytest.raises(lookalike.LookalikeError, match=r"ended with -9 and no message; finished"):
        lookalike.verify(output)


def test_command_ends_with_its_caller(tmp_path):
    """Kill a process during a command that starts a Ray of its own."""
    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    code = "import lookalike; lookalike.index(embeddings='v.npy', output='idx')"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        children = wait_for_children(caller)
    finally:
        caller.kill()
        caller.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
