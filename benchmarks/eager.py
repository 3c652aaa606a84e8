"""Baselines of `benchmarks.embed` in eager torch: the original loop, and a DataLoader.

Each baseline puts a list of (time, images finished then) into the queue `marks`.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

_BATCH = 32


def original_loop(paths: list[str], backbone: str, marks: Any) -> None:
    """Embed in one process, batch by batch, with Pillow and eager torch."""
    import torch

    os.nice(15)  # the priority of Ray's workers
    network, photos = _network(backbone), _Photos(paths)
    batch_times = []
    for first in range(0, len(paths) - _BATCH + 1, _BATCH):
        batch = torch.stack([photos[position] for position in range(first, first + _BATCH)])
        with torch.no_grad():
            network(batch)
        batch_times.append((time.time(), _BATCH))
    marks.put(batch_times)


def data_loader(paths: list[str], backbone: str, marks: Any) -> None:
    """Embed with a DataLoader that decodes in one process per core; channels last."""
    import torch
    from torch.utils.data import DataLoader

    os.nice(15)
    network = _network(backbone).to(memory_format=torch.channels_last)
    loader: Any = DataLoader(
        _Photos(paths),  # type: ignore[arg-type]
        batch_size=_BATCH,
        num_workers=os.cpu_count() or 1,
        drop_last=True,
    )
    batch_times = []
    with torch.inference_mode():
        for batch in loader:
            network(batch.to(memory_format=torch.channels_last))
            batch_times.append((time.time(), len(batch)))
    marks.put(batch_times)


def _network(backbone: str) -> Any:
    from torchvision import models

    return models.get_model(backbone, weights=None).eval()


class _Photos:
    """Dataset of photos with the transforms of torchvision's examples."""

    def __init__(self, paths: list[str]) -> None:
        from torchvision import transforms

        self._paths = paths
        self._steps = transforms.Compose(
            [
                transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> Any:
        from PIL import Image

        data = Path(self._paths[position]).read_bytes()
        return self._steps(Image.open(io.BytesIO(data)).convert("RGB"))
