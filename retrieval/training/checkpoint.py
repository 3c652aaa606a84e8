"""Training checkpoints, written after each epoch, from which an interrupted run resumes.

    work/epoch-00012.safetensors   network, objective, optimizer, and the best network so far
    work/epoch-00012.json          the epochs so far and the checksum of the tensors; written last

A checkpoint is deleted once a newer one is complete. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from retrieval.core.schemas import WORK_FOLDER
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import Folder
from retrieval.training.loop import EpochResult, TrainingProgress

_CHECKPOINT_NAME = re.compile(WORK_FOLDER + r"epoch-(\d{5})\.json")


def write_checkpoint(folder: Folder, progress: TrainingProgress) -> None:
    """Write a checkpoint, then delete those of earlier epochs."""
    name = f"{WORK_FOLDER}epoch-{len(progress.history):05d}"
    tensors = {f"state/{key}": value for key, value in progress.state.items()}
    tensors |= {f"best/{key}": value for key, value in progress.best.items()}
    data = save_safetensors({key: value.contiguous() for key, value in tensors.items()})
    folder.put(f"{name}.safetensors", data)
    digests = {f"{name}.safetensors": hashlib.sha256(data).hexdigest()}
    history = [asdict(epoch) for epoch in progress.history]
    folder.put(f"{name}.json", checksummed_json({"history": history, "files": digests}))
    for entry in list(folder.entries(WORK_FOLDER.rstrip("/"))):
        if entry.path.startswith(f"{WORK_FOLDER}epoch-") and not entry.path.startswith(f"{name}."):
            folder.delete(entry.path)


def read_checkpoint(folder: Folder) -> TrainingProgress | None:
    """Read the newest complete checkpoint; return None if there is none."""
    paths = [entry.path for entry in folder.entries(WORK_FOLDER.rstrip("/"))]
    for record_path in sorted(
        (path for path in paths if _CHECKPOINT_NAME.fullmatch(path)), reverse=True
    ):
        try:
            values = parse_checksummed_json(folder.read(record_path))
            if values is None:
                continue
            ((path, digest),) = values["files"].items()
            data = folder.read(path)
        except FileNotFoundError:
            continue
        if hashlib.sha256(data).hexdigest() == digest:
            return _parse_progress(values["history"], data)
    return None


def _parse_progress(history: list[dict[str, float]], data: bytes) -> TrainingProgress:
    tensors = load_safetensors(data)
    state, best = (
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in ("state/", "best/")
    )
    return TrainingProgress(tuple(EpochResult(**epoch) for epoch in history), state, best)  # type: ignore[arg-type]
