"""The training loop: epochs, each evaluated by retrieval among the validation photos.

The kept epoch is the one with the best validation retrieval (mAP, then top-1), not the lowest loss.
The loop does no input or output: after each epoch it passes its progress to a callback, and a run
that starts from such progress produces the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval.core.errors import LookalikeError
from retrieval.training.augmentation import augment
from retrieval.training.batches import draw_batches
from retrieval.training.distributed import ProcessGroup
from retrieval.training.layers import unfreeze
from retrieval.training.network import TrainableBackbone, normalise_pixels
from retrieval.training.objectives import CrossEntropy, Objective
from retrieval.training.photos import PhotoSplit, PhotoSubset
from retrieval.training.schedule import Schedule, learning_rate_factor, should_stop_early
from retrieval.training.validation import evaluate_retrieval

State = dict[str, Tensor]

WEIGHT_DECAY = 0.05

HEAD_EPOCHS, HEAD_LEARNING_RATE = 60, 1e-3
"""Of a classifier on the embeddings of a frozen body, before the body learns."""

_EVALUATION_BATCH = 64  # photos a forward pass while nothing is learnt


@dataclass(frozen=True)
class TrainingRecipe:
    """Hyperparameters of a training; all of them shape the result."""

    epochs: int
    batch: int
    learning_rate: float
    backbone_lr_scale: float  # that of the body over that of what is new
    schedule: Schedule
    patience: int | None
    unfreeze: str
    varied: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class EpochResult:
    """One row of history.parquet; `tables.HISTORY` says what the columns mean."""

    epoch: int
    loss: float
    accuracy: float | None
    top1: float
    map: float

    @property
    def quality(self) -> tuple[float, float]:
        """Return the key by which the best epoch is chosen: (mAP, top-1)."""
        return self.map, self.top1


@dataclass(frozen=True)
class TrainingProgress:
    """The state after an epoch: all that the next epoch needs, as tensors by name.

    `best` are the backbone's parameters as they were after the best epoch so far.
    """

    history: tuple[EpochResult, ...]
    state: State
    best: State

    @property
    def best_epoch(self) -> EpochResult:
        """Return the kept epoch: the first among the best."""
        return max(self.history, key=lambda epoch: (*epoch.quality, -epoch.epoch))


def train(
    body: TrainableBackbone,
    objective: Objective,
    photos: PhotoSplit,
    recipe: TrainingRecipe,
    *,
    before: TrainingProgress | None = None,
    together: ProcessGroup | None = None,
    on_epoch: Callable[[TrainingProgress], None],
) -> TrainingProgress:
    """Train until the last epoch or early stopping, and return the progress with the best epoch.

    The same photos, recipe, number of threads and kind of processor give the same bytes, also where
    a run went on from `before`. Raises LookalikeError if the loss is not finite.
    """
    learner = Trainer(body, objective, photos, recipe, together or ProcessGroup())
    progress = before
    if progress is not None:
        learner.load(progress.state)
    elif body.pretrained:
        learner.learn_head()
    while progress is None or not _is_finished(progress, recipe):
        progress = learner.epoch(progress)
        on_epoch(progress)
    return progress


def _is_finished(progress: TrainingProgress, recipe: TrainingRecipe) -> bool:
    qualities = [epoch.map for epoch in progress.history]
    return len(qualities) >= recipe.epochs or should_stop_early(qualities, recipe.patience)


class Trainer:
    """A backbone, its objective, and the optimizer of both."""

    def __init__(
        self,
        body: TrainableBackbone,
        objective: Objective,
        photos: PhotoSplit,
        recipe: TrainingRecipe,
        together: ProcessGroup,
    ) -> None:
        self.body, self.objective, self.photos = body, objective, photos
        self.recipe, self.together = recipe, together
        objective.to(body.device)
        unfreeze(body.extractor, recipe.unfreeze)
        slow = recipe.backbone_lr_scale if body.pretrained else 1.0
        groups = [
            {"params": list(body.parameters()), "share": slow},
            {"params": list(objective.parameters()), "share": 1.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=WEIGHT_DECAY
        )

    def learn_head(self) -> None:
        """Train a classifier learn on the embeddings of a body that does not, before both do.

        Embedded once, unvaried: sixty epochs take less than one of the whole network, and no wild
        gradients of a random classifier reach the body.
        """
        if not isinstance(self.objective, CrossEntropy):
            return
        embeddings = embed_photos(self.body, self.photos.plain)
        scale = embeddings.square().mean().sqrt().clamp(min=1e-12)  # some networks' are tiny
        classes = self.photos.plain.classes
        fit_linear_classifier(self.objective, embeddings / scale, classes, self.recipe.seed)
        with torch.no_grad():
            self.objective.classifier.weight.div_(scale.to(self.body.device))

    def epoch(self, before: TrainingProgress | None) -> TrainingProgress:
        """Train one epoch, evaluate it, and return the progress after it."""
        history = () if before is None else before.history
        number = len(history) + 1
        loss = self.learn(number, [epoch.map for epoch in history])
        found = embed_photos(self.body, self.photos.validation)
        if not (math.isfinite(loss) and bool(torch.isfinite(found).all())):
            rate_ = self.recipe.learning_rate
            raise LookalikeError(
                f"training diverged: the loss is not finite in epoch {number}; lower "
                f"--learning-rate from {rate_:g} to {rate_ / 10:g}"
            )
        classes = self.photos.validation.classes
        top1, precision = evaluate_retrieval(found, classes, seed=self.recipe.seed)
        epoch = EpochResult(number, loss, self._accuracy(found), top1, precision)
        best = epoch if before is None else max(before.best_epoch, epoch, key=lambda e: e.quality)
        kept = before.best if before is not None and best is not epoch else None
        state = self.body.trained_state() if kept is None else kept
        return TrainingProgress((*history, epoch), self.state(), state)

    def _accuracy(self, embeddings: Tensor) -> float | None:
        """Return the share that a classifier tells right; None where it knows other classes."""
        if not isinstance(self.objective, CrossEntropy) or not self.photos.same_classes:
            return None
        with torch.inference_mode():
            told = self.objective.classifier(embeddings.to(self.body.device)).argmax(1).cpu()
        return float((told == self.photos.validation.classes).double().mean())

    def learn(self, number: int, qualities: list[float]) -> float:
        """Train on all training photos in random order; return the mean loss per photo."""
        recipe, part, transform = self.recipe, self.photos.training, self.body.transform
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        self.body.learn()
        self.objective.train()
        drawn = draw_batches(
            part.classes, recipe.batch, generator, balanced=self.objective.balanced
        )
        device = self.body.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for place, which in enumerate(drawn):
            step = (number - 1) * len(drawn) + place
            share = learning_rate_factor(
                recipe.schedule, step, recipe.epochs * len(drawn), qualities
            )
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * group["share"] * share
            own = self.together.own(which)
            pixels = part.take(own).to(device)
            varied = augment(pixels, transform.image_size, generator, recipe.varied)
            embeddings = self.body.extractor(normalise_pixels(varied, transform))
            loss = self.objective(embeddings, part.classes[own].to(device))
            self.optimizer.zero_grad()
            loss.backward()
            self.together.share(self.optimizer)
            self.optimizer.step()
            total += loss.detach().double() * len(own)
        return self.together.mean(total, len(part))

    def state(self) -> State:
        """Return all tensors that change during training, by name."""
        state = {f"body.{k}": v for k, v in self.body.extractor.state_dict().items()}
        state |= {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def load(self, state: State) -> None:
        """Restore the tensors of `state`."""
        self.body.extractor.load_state_dict(_strip_prefix("body.", state))
        self.objective.load_state_dict(_strip_prefix("objective.", state))
        values: dict[int, State] = {}
        for name, value in _strip_prefix("optimizer.", state).items():
            number, _, key = name.partition(".")
            values.setdefault(int(number), {})[key] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": values})


def embed_photos(body: TrainableBackbone, part: PhotoSubset) -> Tensor:
    """Return the (n, d) embeddings of unaugmented photos, on the CPU."""
    body.extractor.eval()
    with torch.inference_mode():
        return torch.cat([
            body.extractor(
                normalise_pixels(part.take(which).to(body.device).float(), body.transform)
            ).cpu()
            for which in torch.split(torch.arange(len(part)), _EVALUATION_BATCH)
        ])  # fmt: skip


def _strip_prefix(prefix: str, state: State) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def fit_linear_classifier(
    objective: CrossEntropy, embeddings: Tensor, classes: Tensor, seed: int
) -> None:
    """Train a linear classifier learn on (n, d) embeddings that stay as they are.

    These and their classes come from the CPU, wherever the classifier is.
    """
    device = objective.classifier.weight.device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(objective.parameters(), HEAD_LEARNING_RATE)
    for _ in range(HEAD_EPOCHS):
        for which in draw_batches(classes, _EVALUATION_BATCH, generator, balanced=False):
            loss = objective(embeddings[which].clone().to(device), classes[which].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
