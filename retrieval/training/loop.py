"""The training of the compact CNN: cross-entropy on classes, judged by retrieval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.errors import LookalikeError
from retrieval.model.scratch import ScratchCNN
from retrieval.scoring import block, top_k
from retrieval.tables import Transform
from retrieval.training.data import Part, Photos, augment

BATCH = 32
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1
WARM_UP = 0.1


@dataclass(frozen=True)
class Epoch:
    """One row of history.parquet (tables.HISTORY)."""

    epoch: int
    loss: float
    accuracy: float
    top1: float


@dataclass(frozen=True)
class Trained:
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ScratchCNN(len(photos.names)).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    normalise = _Normalise(transform)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    count = len(photos.training.classes)
    steps = -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _share(s, steps * epochs))
    history = []
    best = None
    for number in range(1, epochs + 1):
        network.train()
        total = 0.0
        for which in torch.randperm(count, generator=generator).tensor_split(steps):
            images = normalise(
                augment(photos.training.pixels[which], transform.image_size, generator)
            )
            loss = functional.cross_entropy(
                network(images), photos.training.classes[which], label_smoothing=SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(which)
        accuracy, top1 = evaluate(network, photos.validation, normalise)
        epoch = Epoch(number, total / count, accuracy, top1)
        history.append(epoch)
        on_epoch(epoch)
        if best is None or (top1, accuracy, number) > (best.top1, best.accuracy, best.epoch):
            best = epoch
            state = {k: v.clone() for k, v in network.state_dict().items()}
    return Trained(state, tuple(history), best)


def _share(step, steps):
    warm = max(1, round(steps * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class _Normalise:
    def __init__(self, transform):
        self.mean = torch.tensor(transform.mean).view(3, 1, 1) * 255
        self.scale = 1 / (torch.tensor(transform.std).view(3, 1, 1) * 255)

    def __call__(self, pixels):
        return ((pixels.float() - self.mean) * self.scale).contiguous(
            memory_format=torch.channels_last
        )


def evaluate(network, part, normalise):
    network.eval()
    with torch.inference_mode():
        emb = torch.cat(
            [
                network.avgpool(network.features(normalise(p))).flatten(1)
                for p in part.pixels.split(64)
            ]
        )
        right = network.classifier(emb).argmax(1) == part.classes
    return right.float().mean().item(), top1(emb, part.classes)


def top1(emb, classes):
    vectors = block(emb.numpy(), "cosine")
    found = torch.from_numpy(top_k(vectors, vectors, 2).positions)
    me = torch.arange(len(classes))
    other = torch.where(found[:, 0] == me, found[:, 1], found[:, 0])
    return (classes[other] == classes).float().mean().item()
