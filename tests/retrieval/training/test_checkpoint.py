"""Tests of training checkpoints: an epoch is read completely or not at all."""

import pytest
import torch

from retrieval.storage.local import open_folder
from retrieval.training.checkpoint import read_checkpoint, write_checkpoint
from retrieval.training.loop import EpochResult, TrainingProgress
from tests.retrieval.storage.faults import Killed


def make_progress(epochs):
    history = tuple(
        EpochResult(n, 1 / n, None if n % 2 else 0.5, 0.1 * n, 0.2) for n in range(1, epochs + 1)
    )
    state = {
        "body.a.weight": torch.full((2, 3), float(epochs)),
        "optimizer.0.step": torch.tensor(5.0),
    }
    return TrainingProgress(history, state, {"a.weight": torch.zeros(3, dtype=torch.int64)})


def assert_equal_progress(actual, expected):
    assert actual.history == expected.history
    for name in ("state", "best"):
        actual_state, expected_state = getattr(actual, name), getattr(expected, name)
        assert actual_state.keys() == expected_state.keys()
        for key, value in actual_state.items():
            assert torch.equal(value, expected_state[key])
            assert value.dtype == expected_state[key].dtype


def test_checkpoint_round_trip_keeps_last_epoch_only(tmp_path):
    folder = open_folder(str(tmp_path))
    assert read_checkpoint(folder) is None
    for epochs in (1, 2):
        write_checkpoint(folder, make_progress(epochs))
        assert_equal_progress(read_checkpoint(folder), make_progress(epochs))
    assert len(list(folder.entries("work"))) == 2, "earlier epochs are removed"


@pytest.mark.parametrize("altered", ["epoch-00002.json", "epoch-00002.safetensors"])
def test_altered_checkpoint_is_ignored(tmp_path, altered):
    folder = open_folder(str(tmp_path))
    write_checkpoint(folder, make_progress(2))
    data = bytearray((tmp_path / "work" / altered).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "work" / altered).write_bytes(data)
    assert read_checkpoint(folder) is None


def test_interrupted_write_leaves_one_complete_epoch(tmp_path, monkeypatch):
    for operations in range(4):  # completed before the process is killed
        folder = open_folder(str(tmp_path / str(operations)))
        write_checkpoint(folder, make_progress(1))
        remaining = [operations]
        with monkeypatch.context() as patch:
            for name in ("put", "delete"):
                original = getattr(type(folder), name)

                def limited(self, *arguments, original=original, remaining=remaining):
                    remaining[0] -= 1
                    if remaining[0] < 0:
                        raise Killed
                    return original(self, *arguments)

                patch.setattr(type(folder), name, limited)
            with pytest.raises(Killed):
                write_checkpoint(folder, make_progress(2))
        assert_equal_progress(read_checkpoint(folder), make_progress(2 if operations >= 2 else 1))
