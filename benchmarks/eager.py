"""Baselines of `benchmarks.embed` in eager torch: the original loop, and a DataLoader."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

_BATCH = 32


def as_it_began(paths: list[str], backbone: str, marks: Any) -> None:
    """One process: Pillow, then eager torch, batch by batch."""
    import torch

    os.nice(15)  # as Ray's workers are
    network, photos = _network(backbone), _Photos(paths)
    seen = []
    for first in range(0, len(paths) - _BATCH + 1, _BATCH):
        batch = torch.stack([photos[place] for place in range(first, first + _BATCH)])
        with torch.no_grad():
            network(batch)
        seen.append((time.time(), _BATCH))
    marks.put(seen)


def by_data_loader(paths: list[str], backbone: str, marks: Any) -> None:
    """Decode in a process a core by torch's DataLoader; channels last, inference mode."""
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
    seen = []
    with torch.inference_mode():
        for batch in loader:
            network(batch.to(memory_format=torch.channels_last))
            seen.append((time.time(), len(batch)))
    marks.put(seen)


def _network(backbone: str) -> Any:
    from torchvision import models

    return models.get_model(backbone, weights=None).eval()


class _Photos:
    """Photos as torchvision's examples read them."""

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

    def __getitem__(self, place: int) -> Any:
        from PIL import Image

        data = Path(self._paths[place]).read_bytes()
        return self._steps(Image.open(io.BytesIO(data)).convert("RGB"))
