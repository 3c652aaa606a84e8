"""Several processes learn one network through Ray Train; a lost one is replaced."""

import os
import signal
import threading
import time

import psutil
import pyarrow.parquet as pq
import pytest

from jobs.config.settings import TrainSettings
from jobs.training import train
from retrieval.core.errors import LookalikeError
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("ray_here")]  # Ray Train takes a minute


def start(photos, output, **given):
    asked = {"epochs": 4, "image_size": 32, "workers": 2, "cache": str(output) + "-cache", **given}
    return train.start(TrainSettings(data=str(photos), output=str(output), **asked))


def test_two_processes_learn_what_one_does(tmp_path):
    photos = draw_photos(tmp_path / "photos", 48)
    two = start(photos, tmp_path / "two")
    one = start(photos, tmp_path / "one", workers=1)
    assert two.values["epochs"] == one.values["epochs"] == 4
    assert abs(two.values["AP"] - one.values["AP"]) < 0.25
    losses = [
        pq.read_table(tmp_path / name / "history.parquet")["loss"].to_pylist()
        for name in ("one", "two")
    ]
    assert losses[1][-1] < losses[1][0]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.2)
    assert verify(open_folder(str(tmp_path / "two")))[0].state == "finished"


def test_a_loss_that_is_no_number_ends_all_of_them_at_once(tmp_path):
    photos = draw_photos(tmp_path / "photos", 48)
    with pytest.raises(LookalikeError, match=r"diverged.* in epoch 1.*--learning-rate from"):
        start(photos, tmp_path / "bundle", learning_rate=1e30)
    assert not list((tmp_path / "bundle").glob("model/*"))
    again = start(photos, tmp_path / "bundle", overwrite=True)
    assert again.values["epochs"] == 4


def test_a_lost_process_is_replaced(tmp_path):
    photos, output = draw_photos(tmp_path / "photos", 48), tmp_path / "bundle"
    killed = []

    def kill_one():
        while not killed:
            time.sleep(0.05)
            if list(output.glob("work/epoch-00002.json")):
                for process in psutil.process_iter(["name", "cmdline"]):
                    if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])[:80]:
                        killed.append(process.pid)
                        os.kill(process.pid, signal.SIGKILL)
                        return

    threading.Thread(target=kill_one, daemon=True).start()
    result = start(photos, output, epochs=12)
    assert killed, "a worker was there to be killed"
    assert result.values["epochs"] == 12
    history = pq.read_table(output / "history.parquet")
    assert history["epoch"].to_pylist() == list(range(1, 13))
