"""How a network learns, epoch by epoch, each judged by retrieval among photos that were held out.

What is wanted is an embedding, so the epoch that is kept is the one whose validation photos find
their own kind best, not the one of least loss. Nothing here knows of files or of a terminal: after
each epoch its state is handed out, and a run that gets one goes on from it to the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval.core.errors import LookalikeError
from retrieval.training.augmentation import augment
from retrieval.training.batches import batches
from retrieval.training.distributed import Together
from retrieval.training.layers import unfreeze
from retrieval.training.network import Body, normalised
from retrieval.training.objectives import CrossEntropy, Objective
from retrieval.training.photos import Part, Photos
from retrieval.training.schedule import Schedule, is_over, rate
from retrieval.training.validation import retrieval_of

State = dict[str, Tensor]

WEIGHT_DECAY = 0.05

HEAD_EPOCHS, HEAD_RATE = 60, 1e-3
"""Of a classifier on the embeddings of a frozen body, before the body learns."""

_SEEN_AT_ONCE = 64  # photos a forward pass while nothing is learnt


@dataclass(frozen=True)
class Recipe:
    """How to learn; all of it shapes what comes out."""

    epochs: int
    batch: int
    learning_rate: float
    body_rate: float  # that of the body over that of what is new
    schedule: Schedule
    patience: int | None
    unfreeze: str
    varied: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Epoch:
    """One row of history.parquet; `tables.HISTORY` says what the columns mean."""

    epoch: int
    loss: float
    accuracy: float | None
    top1: float
    map: float

    @property
    def quality(self) -> tuple[float, float]:
        """Give what epochs are chosen by."""
        return self.map, self.top1


@dataclass(frozen=True)
class Progress:
    """Where a run is after an epoch: all that the next one needs, as tensors by name.

    `best` are the backbone's parameters as they were after the best epoch so far.
    """

    history: tuple[Epoch, ...]
    state: State
    best: State

    @property
    def best_epoch(self) -> Epoch:
        """Give the epoch that is kept: the first of the best."""
        return max(self.history, key=lambda epoch: (*epoch.quality, -epoch.epoch))


def train(
    body: Body,
    objective: Objective,
    photos: Photos,
    recipe: Recipe,
    *,
    before: Progress | None = None,
    together: Together | None = None,
    on_epoch: Callable[[Progress], None],
) -> Progress:
    """Learn until the epochs are over or the patience is, and give the best.

    The same photos, recipe, number of threads and kind of processor give the same bytes, also where
    a run went on from `before`. Raises LookalikeError when the loss is no number any more.
    """
    learner = Learner(body, objective, photos, recipe, together or Together())
    progress = before
    if progress is not None:
        learner.load(progress.state)
    elif body.pretrained:
        learner.learn_head()
    while progress is None or not _done(progress, recipe):
        progress = learner.epoch(progress)
        on_epoch(progress)
    return progress


def _done(progress: Progress, recipe: Recipe) -> bool:
    qualities = [epoch.map for epoch in progress.history]
    return len(qualities) >= recipe.epochs or is_over(qualities, recipe.patience)


class Learner:
    """A network, what it is asked for, and the optimizer of both."""

    def __init__(
        self, body: Body, objective: Objective, photos: Photos, recipe: Recipe, together: Together
    ) -> None:
        self.body, self.objective, self.photos = body, objective, photos
        self.recipe, self.together = recipe, together
        objective.to(body.device)
        unfreeze(body.extractor, recipe.unfreeze)
        slow = recipe.body_rate if body.pretrained else 1.0
        groups = [
            {"params": list(body.parameters()), "share": slow},
            {"params": list(objective.parameters()), "share": 1.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=WEIGHT_DECAY
        )

    def learn_head(self) -> None:
        """Let a classifier learn on the embeddings of a body that does not, before both do.

        Embedded once, unvaried: sixty epochs take less than one of the whole network, and no wild
        gradients of a random classifier reach the body.
        """
        if not isinstance(self.objective, CrossEntropy):
            return
        embeddings = embeddings_of(self.body, self.photos.plain)
        scale = embeddings.square().mean().sqrt().clamp(min=1e-12)  # some networks' are tiny
        classes = self.photos.plain.classes
        learn_classifier(self.objective, embeddings / scale, classes, self.recipe.seed)
        with torch.no_grad():
            self.objective.classifier.weight.div_(scale.to(self.body.device))

    def epoch(self, before: Progress | None) -> Progress:
        """Go through all photos once and judge; gives the progress after it."""
        history = () if before is None else before.history
        number = len(history) + 1
        loss = self.learn(number, [epoch.map for epoch in history])
        found = embeddings_of(self.body, self.photos.validation)
        if not (math.isfinite(loss) and bool(torch.isfinite(found).all())):
            rate_ = self.recipe.learning_rate
            raise LookalikeError(
                f"the loss is no number any more in epoch {number}, most likely since "
                f"--learning-rate {rate_:g} is too high; try {rate_ / 10:g}"
            )
        classes = self.photos.validation.classes
        top1, precision = retrieval_of(found, classes, seed=self.recipe.seed)
        epoch = Epoch(number, loss, self._accuracy(found), top1, precision)
        best = epoch if before is None else max(before.best_epoch, epoch, key=lambda e: e.quality)
        kept = before.best if before is not None and best is not epoch else None
        state = self.body.trained_state() if kept is None else kept
        return Progress((*history, epoch), self.state(), state)

    def _accuracy(self, embeddings: Tensor) -> float | None:
        """Give the share that a classifier tells right; None where it knows other classes."""
        if not isinstance(self.objective, CrossEntropy) or not self.photos.same_classes:
            return None
        with torch.inference_mode():
            told = self.objective.classifier(embeddings.to(self.body.device)).argmax(1).cpu()
        return float((told == self.photos.validation.classes).double().mean())

    def learn(self, number: int, qualities: list[float]) -> float:
        """Go through the training photos in an order that is drawn; give the mean loss of one."""
        recipe, part, transform = self.recipe, self.photos.training, self.body.transform
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        self.body.learn()
        self.objective.train()
        drawn = batches(part.classes, recipe.batch, generator, balanced=self.objective.balanced)
        device = self.body.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for place, which in enumerate(drawn):
            step = (number - 1) * len(drawn) + place
            share = rate(recipe.schedule, step, recipe.epochs * len(drawn), qualities)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * group["share"] * share
            own = self.together.own(which)
            pixels = part.take(own).to(device)
            varied = augment(pixels, transform.image_size, generator, recipe.varied)
            embeddings = self.body.extractor(normalised(varied, transform))
            loss = self.objective(embeddings, part.classes[own].to(device))
            self.optimizer.zero_grad()
            loss.backward()
            self.together.share(self.optimizer)
            self.optimizer.step()
            total += loss.detach().double() * len(own)
        return self.together.mean(total, len(part))

    def state(self) -> State:
        """Give all that changes while learning, by name."""
        state = {f"body.{k}": v for k, v in self.body.extractor.state_dict().items()}
        state |= {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def load(self, state: State) -> None:
        """Take up what `state` gave."""
        self.body.extractor.load_state_dict(_below("body.", state))
        self.objective.load_state_dict(_below("objective.", state))
        values: dict[int, State] = {}
        for name, value in _below("optimizer.", state).items():
            number, _, key = name.partition(".")
            values.setdefault(int(number), {})[key] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": values})


def embeddings_of(body: Body, part: Part) -> Tensor:
    """Give the (n, d) embeddings of photos as they are, on the CPU."""
    body.extractor.eval()
    with torch.inference_mode():
        return torch.cat([
            body.extractor(normalised(part.take(which).to(body.device).float(), body.transform))
            .cpu()
            for which in torch.split(torch.arange(len(part)), _SEEN_AT_ONCE)
        ])  # fmt: skip


def _below(prefix: str, state: State) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def learn_classifier(
    objective: CrossEntropy, embeddings: Tensor, classes: Tensor, seed: int
) -> None:
    """Let a linear classifier learn on (n, d) embeddings that stay as they are.

    These and their classes come from the CPU, wherever the classifier is.
    """
    device = objective.classifier.weight.device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(objective.parameters(), HEAD_RATE)
    for _ in range(HEAD_EPOCHS):
        for which in batches(classes, _SEEN_AT_ONCE, generator, balanced=False):
            loss = objective(embeddings[which].clone().to(device), classes[which].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
