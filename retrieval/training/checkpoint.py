"""Where a training is, on disk after each epoch: what a killed run goes on from.

    work/epoch-00012.safetensors   network, objective, optimizer, and the best network so far
    work/epoch-00012.json          the epochs so far and the checksum of the other; put last

Older ones are removed once a newer one is whole. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from retrieval.core.schemas import WORK
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.local import Folder
from retrieval.training.loop import Epoch, Progress

_NOTE = re.compile(WORK + r"epoch-(\d{5})\.json")


def put_progress(folder: Folder, progress: Progress) -> None:
    """Put where a training is, then remove what an earlier epoch left."""
    name = f"{WORK}epoch-{len(progress.history):05d}"
    tensors = {f"state/{key}": value for key, value in progress.state.items()}
    tensors |= {f"best/{key}": value for key, value in progress.best.items()}
    data = save_safetensors({key: value.contiguous() for key, value in tensors.items()})
    folder.put(f"{name}.safetensors", data)
    sums = {f"{name}.safetensors": hashlib.sha256(data).hexdigest()}
    history = [asdict(epoch) for epoch in progress.history]
    folder.put(f"{name}.json", sealed_json({"history": history, "files": sums}))
    for entry in list(folder.entries(WORK.rstrip("/"))):
        if entry.path.startswith(f"{WORK}epoch-") and not entry.path.startswith(f"{name}."):
            folder.delete(entry.path)


def read_progress(folder: Folder) -> Progress | None:
    """Read where a training was; None where no epoch is whole."""
    paths = [entry.path for entry in folder.entries(WORK.rstrip("/"))]
    for note in sorted((path for path in paths if _NOTE.fullmatch(path)), reverse=True):
        try:
            values = read_json(folder.read(note))
            if values is None:
                continue
            ((path, digest),) = values["files"].items()
            data = folder.read(path)
        except FileNotFoundError:
            continue
        if hashlib.sha256(data).hexdigest() == digest:
            return _progress(values["history"], data)
    return None


def _progress(history: list[dict[str, float]], data: bytes) -> Progress:
    tensors = load_safetensors(data)
    state, best = (
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in ("state/", "best/")
    )
    return Progress(tuple(Epoch(**epoch) for epoch in history), state, best)  # type: ignore[arg-type]
