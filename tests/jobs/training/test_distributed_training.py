"""Test training in several processes with Ray Train, and the replacement of a killed process."""

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

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("local_ray")]  # Ray Train takes a minute


def start_training(photos, output, **options):
    defaults = {
        "epochs": 4,
        "image_size": 32,
        "workers": 2,
        "cache": str(output) + "-cache",
        **options,
    }
    return train.start(TrainSettings(data=str(photos), output=str(output), **defaults))


def test_two_processes_train_like_one(tmp_path):
    photos = draw_photos(tmp_path / "photos", 48)
    two_workers = start_training(photos, tmp_path / "two")
    one_worker = start_training(photos, tmp_path / "one", workers=1)
    assert two_workers.values["epochs"] == one_worker.values["epochs"] == 4
    assert abs(two_workers.values["AP"] - one_worker.values["AP"]) < 0.25
    losses = [
        pq.read_table(tmp_path / name / "history.parquet")["loss"].to_pylist()
        for name in ("one", "two")
    ]
    assert losses[1][-1] < losses[1][0]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.2)
    assert verify(open_folder(str(tmp_path / "two")))[0].state == "finished"


def test_nan_loss_ends_all_processes(tmp_path):
    photos = draw_photos(tmp_path / "photos", 48)
    with pytest.raises(LookalikeError, match=r"diverged.* in epoch 1.*--learning-rate from"):
        start_training(photos, tmp_path / "bundle", learning_rate=1e30)
    assert not list((tmp_path / "bundle").glob("model/*"))
    second_result = start_training(photos, tmp_path / "bundle", overwrite=True)
    assert second_result.values["epochs"] == 4


def test_killed_process_is_replaced(tmp_path):
    photos, output = draw_photos(tmp_path / "photos", 48), tmp_path / "bundle"
    killed_pids = []

    def kill_worker():
        while not killed_pids:
            time.sleep(0.05)
            if list(output.glob("work/epoch-00002.json")):
                for process in psutil.process_iter(["name", "cmdline"]):
                    if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])[:80]:
                        killed_pids.append(process.pid)
                        os.kill(process.pid, signal.SIGKILL)
                        return

    threading.Thread(target=kill_worker, daemon=True).start()
    result = start_training(photos, output, epochs=12)
    assert killed_pids, "no training worker was found"
    assert result.values["epochs"] == 12
    history = pq.read_table(output / "history.parquet")
    assert history["epoch"].to_pylist() == list(range(1, 13))
