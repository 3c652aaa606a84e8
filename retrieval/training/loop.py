"""How the compact CNN learns: cross-entropy on classes, each epoch judged by retrieval.

What is wanted is an embedding, so the epoch that is kept is the one whose validation photos find
their own kind best, not the one of least loss. Nothing here knows of files or of a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from retrieval.closest import top_k
from retrieval.errors import LookalikeError
from retrieval.model.scratch import ScratchCNN
from retrieval.records import Transform
from retrieval.scoring import block
from retrieval.training.data import Part, Photos, augment

BATCH = 16
"""Most photos a step: few photos make few steps, and those are what a short training lacks."""

WEIGHT_DECAY = 0.05

SMOOTHING = 0.05
"""Of labels: keeps the classes from being pushed apart for ever."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises to its highest."""

_SEEN_AT_ONCE = 64  # photos a forward pass while validating


@dataclass(frozen=True)
class Epoch:
    """One row of history.parquet; `tables.HISTORY` says what the columns mean."""

    epoch: int
    loss: float
    accuracy: float
    top1: float


@dataclass(frozen=True)
class Trained:
    """What training came to: the parameters as they were after the epoch `best`."""

    state: dict[str, Tensor]
    history: tuple[Epoch, ...]
    best: Epoch


def train(
    photos: Photos,
    transform: Transform,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    on_epoch: Callable[[Epoch], None],
) -> Trained:
    """Train from random parameters and give those of the best epoch.

    Best is the highest share of validation photos whose nearest other one shares the class, then
    the highest accuracy, then the later epoch, whose learning rate was the lower. The same photos,
    settings, number of threads and kind of processor give the same bytes of parameters. Raises
    LookalikeError when the loss is no number any more.
    """
    network = _network(len(photos.names), seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    steps = epochs * _batches(photos.training)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    history: list[Epoch] = []
    best: Epoch | None = None
    state: dict[str, Tensor] = {}
    for number in range(1, epochs + 1):
        loss = _learn(network, photos.training, transform, generator, optimizer, schedule)
        embeddings, logits = _look(network, photos.validation, transform)
        if not (math.isfinite(loss) and bool(torch.isfinite(embeddings).all())):
            raise LookalikeError(
                f"the loss is no number any more in epoch {number}, most likely since "
                f"--learning-rate {learning_rate:g} is too high; try {learning_rate / 10:g}"
            )
        right = logits.argmax(1) == photos.validation.classes
        shared = top1(embeddings, photos.validation.classes)
        epoch = Epoch(number, loss, float(right.double().mean()), shared)
        history.append(epoch)
        if best is None or _goodness(epoch) > _goodness(best):
            best = epoch
            state = {name: value.clone() for name, value in network.state_dict().items()}
        on_epoch(epoch)
    assert best is not None
    return Trained(state, tuple(history), best)


def rate(step: int, steps: int) -> float:
    """Give the share of the learning rate for a step, from 0: a straight rise, then a cosine to 0.

    Source: Loshchilov, Hutter, "SGDR" (2017), without restarts.
    """
    rise = max(1, round(steps * WARM_UP))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step + 1 - rise) / max(1, steps - rise))) / 2


def top1(embeddings: Tensor, classes: Tensor) -> float:
    """Give the share whose nearest other row, by cosine, shares the class.

    `embeddings` is (n, d) float32 and finite, n at least 2; `classes` (n,) int64.
    """
    vectors = block(embeddings.numpy(), "cosine")
    found = torch.from_numpy(top_k(vectors, vectors, 2).positions)  # (n, 2)
    itself = found[:, 0] == torch.arange(len(classes))  # an equal row may stand before it
    nearest = torch.where(itself, found[:, 1], found[:, 0])
    return float((classes[nearest] == classes).double().mean())


def _network(classes: int, seed: int) -> ScratchCNN:
    with torch.random.fork_rng(devices=[]):  # the caller's own draws stay what they were
        torch.manual_seed(seed)
        return ScratchCNN(classes).to(memory_format=torch.channels_last)


def _goodness(epoch: Epoch) -> tuple[float, float, int]:
    return epoch.top1, epoch.accuracy, epoch.epoch


def _batches(part: Part) -> int:
    return -(-len(part.classes) // BATCH)


def _learn(
    network: ScratchCNN,
    part: Part,
    transform: Transform,
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Go through all photos once, in an order that is drawn; give the mean loss of a photo.

    Batches differ by one photo at most: a last one of a single photo has no variance to normalise
    by.
    """
    network.train()
    total = 0.0
    order = torch.randperm(len(part.classes), generator=generator)
    for which in order.tensor_split(_batches(part)):
        varied = augment(part.pixels[which], transform.image_size, generator)
        loss = functional.cross_entropy(
            network(_normalised(varied, transform)),
            part.classes[which],
            label_smoothing=SMOOTHING,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        total += float(loss.detach()) * len(which)
    return total / len(part.classes)


def _look(network: ScratchCNN, part: Part, transform: Transform) -> tuple[Tensor, Tensor]:
    """Give the embeddings (n, d) and the logits (n, classes) of photos as they are."""
    network.eval()
    found = []
    with torch.inference_mode():
        for pixels in torch.split(part.pixels, _SEEN_AT_ONCE):
            features = network.features(_normalised(pixels.float(), transform))
            found.append(network.avgpool(features).flatten(1))
        embeddings = torch.cat(found)
        return embeddings, network.classifier(embeddings)


def _normalised(images: Tensor, transform: Transform) -> Tensor:
    """Bring values from 0 to 255 to what the network reads, channels last."""
    mean = torch.tensor(transform.mean).view(3, 1, 1) * 255
    scale = 1 / (torch.tensor(transform.std).view(3, 1, 1) * 255)
    return ((images - mean) * scale).contiguous(memory_format=torch.channels_last)
