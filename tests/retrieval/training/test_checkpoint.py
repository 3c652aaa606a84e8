"""Where a training was is found again whole, or not at all."""

import pytest
import torch

from retrieval.storage.local import open_folder
from retrieval.training.checkpoint import read_checkpoint, write_checkpoint
from retrieval.training.loop import EpochResult, TrainingProgress
from tests.retrieval.storage.faults import Killed


def progress(epochs):
    history = tuple(
        EpochResult(n, 1 / n, None if n % 2 else 0.5, 0.1 * n, 0.2) for n in range(1, epochs + 1)
    )
    state = {
        "body.a.weight": torch.full((2, 3), float(epochs)),
        "optimizer.0.step": torch.tensor(5.0),
    }
    return TrainingProgress(history, state, {"a.weight": torch.zeros(3, dtype=torch.int64)})


def same(found, expected):
    assert found.history == expected.history
    for name in ("state", "best"):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left)


def test_what_was_put_is_read(tmp_path):
    folder = open_folder(str(tmp_path))
    assert read_checkpoint(folder) is None
    for epochs in (1, 2):
        write_checkpoint(folder, progress(epochs))
        same(read_checkpoint(folder), progress(epochs))
    assert len(list(folder.entries("work"))) == 2, "an older epoch is removed"


@pytest.mark.parametrize("altered", ["epoch-00002.json", "epoch-00002.safetensors"])
def test_an_altered_epoch_is_not_gone_on_from(tmp_path, altered):
    folder = open_folder(str(tmp_path))
    write_checkpoint(folder, progress(2))
    data = bytearray((tmp_path / "work" / altered).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "work" / altered).write_bytes(data)
    assert read_checkpoint(folder) is None


def test_killed_at_any_file_one_epoch_is_whole(tmp_path, monkeypatch):
    for moment in range(4):
        folder = open_folder(str(tmp_path / str(moment)))
        write_checkpoint(folder, progress(1))
        left = [moment]
        with monkeypatch.context() as patch:
            for name in ("put", "delete"):
                real = getattr(type(folder), name)

                def dies(self, *words, real=real, left=left):
                    left[0] -= 1
                    if left[0] < 0:
                        raise Killed
                    return real(self, *words)

                patch.setattr(type(folder), name, dies)
            with pytest.raises(Killed):
                write_checkpoint(folder, progress(2))
        same(read_checkpoint(folder), progress(2 if moment >= 2 else 1))
