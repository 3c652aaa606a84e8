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
"""Training of a classifier on the embeddings of the frozen backbone, before both are trained."""

_EVALUATION_BATCH = 64  # photos per forward pass without training


@dataclass(frozen=True)
class TrainingRecipe:
    """Hyperparameters of a training; all of them shape the result."""

    epochs: int
    batch: int
    learning_rate: float
    backbone_lr_scale: float  # learning rate of the backbone over that of new layers
    schedule: Schedule
    patience: int | None
    unfreeze: str
    augmentations: tuple[str, ...]  # names of `augmentation.VARIATIONS`
    seed: int


@dataclass(frozen=True)
class EpochResult:
    """One row of history.parquet; its columns are described by `schemas.HISTORY`."""

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
    """The state after an epoch: everything that the next epoch needs, as tensors by name.

    `best` holds the backbone's parameters after the best epoch so far.
    """

    history: tuple[EpochResult, ...]
    state: State
    best: State

    @property
    def best_epoch(self) -> EpochResult:
        """Return the best epoch, the first among equals."""
        return max(self.history, key=lambda epoch: (*epoch.quality, -epoch.epoch))


def train(
    body: TrainableBackbone,
    objective: Objective,
    photos: PhotoSplit,
    recipe: TrainingRecipe,
    *,
    resume_from: TrainingProgress | None = None,
    processes: ProcessGroup | None = None,
    on_epoch: Callable[[TrainingProgress], None],
) -> TrainingProgress:
    """Train until the last epoch or early stopping; return the progress after the last epoch.

    The same photos, recipe, number of threads and kind of processor give the same bytes, also for a
    run that continues from the checkpoint `resume_from`. `processes` is the group of data-parallel
    processes; `on_epoch` is called after each epoch. Raises LookalikeError if the loss is not
    finite.
    """
    trainer = Trainer(body, objective, photos, recipe, processes or ProcessGroup())
    progress = resume_from
    if progress is not None:
        trainer.load(progress.state)
    elif body.pretrained:
        trainer.fit_head()
    while progress is None or not _is_finished(progress, recipe):
        progress = trainer.run_epoch(progress)
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
        processes: ProcessGroup,
    ) -> None:
        self.body, self.objective, self.photos = body, objective, photos
        self.recipe, self.processes = recipe, processes
        objective.to(body.device)
        unfreeze(body.extractor, recipe.unfreeze)
        backbone_scale = recipe.backbone_lr_scale if body.pretrained else 1.0
        groups = [
            {"params": list(body.parameters()), "lr_scale": backbone_scale},
            {"params": list(objective.parameters()), "lr_scale": 1.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=WEIGHT_DECAY
        )

    def fit_head(self) -> None:
        """Fit the classifier on the embeddings of the frozen backbone, before both are trained.

        Photos are embedded once, without augmentation: 60 epochs take less time than one of the
        whole network, and the backbone gets no gradients of a random classifier.
        """
        if not isinstance(self.objective, CrossEntropy):
            return
        embeddings = embed_photos(self.body, self.photos.plain)
        # some networks have tiny embeddings
        scale = embeddings.square().mean().sqrt().clamp(min=1e-12)
        classes = self.photos.plain.classes
        fit_linear_classifier(self.objective, embeddings / scale, classes, self.recipe.seed)
        with torch.no_grad():
            self.objective.classifier.weight.div_(scale.to(self.body.device))

    def run_epoch(self, previous: TrainingProgress | None) -> TrainingProgress:
        """Train and evaluate the epoch after `previous`; return the progress after it.

        Raises LookalikeError if the loss or an embedding is not finite.
        """
        history = () if previous is None else previous.history
        number = len(history) + 1
        loss = self.train_epoch(number, [epoch.map for epoch in history])
        embeddings = embed_photos(self.body, self.photos.validation)
        if not (math.isfinite(loss) and bool(torch.isfinite(embeddings).all())):
            learning_rate = self.recipe.learning_rate
            raise LookalikeError(
                f"training diverged: the loss is not finite in epoch {number}; lower "
                f"--learning-rate from {learning_rate:g} to {learning_rate / 10:g}"
            )
        classes = self.photos.validation.classes
        top1, precision = evaluate_retrieval(embeddings, classes, seed=self.recipe.seed)
        epoch = EpochResult(number, loss, self._accuracy(embeddings), top1, precision)
        best = (
            epoch if previous is None else max(previous.best_epoch, epoch, key=lambda e: e.quality)
        )
        previous_best = previous.best if previous is not None and best is not epoch else None
        state = self.body.trained_state() if previous_best is None else previous_best
        return TrainingProgress((*history, epoch), self.state(), state)

    def _accuracy(self, embeddings: Tensor) -> float | None:
        """Return the validation accuracy; None without a classifier of the validation classes."""
        if not isinstance(self.objective, CrossEntropy) or not self.photos.same_classes:
            return None
        with torch.inference_mode():
            predicted = self.objective.classifier(embeddings.to(self.body.device)).argmax(1).cpu()
        return float((predicted == self.photos.validation.classes).double().mean())

    def train_epoch(self, number: int, qualities: list[float]) -> float:
        """Train epoch `number` (from 1) on all training photos; return the mean loss per photo.

        `qualities` are the validation mAP of the epochs so far.
        """
        recipe, photos, transform = self.recipe, self.photos.training, self.body.transform
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        self.body.set_training_mode()
        self.objective.train()
        batches = draw_batches(
            photos.classes, recipe.batch, generator, balanced=self.objective.balanced
        )
        device = self.body.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for index, batch in enumerate(batches):
            step = (number - 1) * len(batches) + index
            factor = learning_rate_factor(
                recipe.schedule, step, recipe.epochs * len(batches), qualities
            )
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * group["lr_scale"] * factor
            local_batch = self.processes.local_part(batch)
            pixels = photos.take(local_batch).to(device)
            images = augment(pixels, transform.image_size, generator, recipe.augmentations)
            embeddings = self.body.extractor(normalise_pixels(images, transform))
            loss = self.objective(embeddings, photos.classes[local_batch].to(device))
            self.optimizer.zero_grad()
            loss.backward()
            self.processes.average_gradients(self.optimizer)
            self.optimizer.step()
            total += loss.detach().double() * len(local_batch)
        return self.processes.mean(total, len(photos))

    def state(self) -> State:
        """Return all tensors that change during training, by name."""
        state = {f"body.{k}": v for k, v in self.body.extractor.state_dict().items()}
        state |= {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def load(self, state: State) -> None:
        """Restore the tensors that `state` returned."""
        self.body.extractor.load_state_dict(_strip_prefix("body.", state))
        self.objective.load_state_dict(_strip_prefix("objective.", state))
        values: dict[int, State] = {}
        for name, value in _strip_prefix("optimizer.", state).items():
            number, _, key = name.partition(".")
            values.setdefault(int(number), {})[key] = value
        optimizer_state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**optimizer_state, "state": values})


def embed_photos(body: TrainableBackbone, part: PhotoSubset) -> Tensor:
    """Return the (n, d) embeddings of unaugmented photos, on the CPU."""
    body.extractor.eval()
    with torch.inference_mode():
        return torch.cat([
            body.extractor(
                normalise_pixels(part.take(positions).to(body.device).float(), body.transform)
            ).cpu()
            for positions in torch.split(torch.arange(len(part)), _EVALUATION_BATCH)
        ])  # fmt: skip


def _strip_prefix(prefix: str, state: State) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def fit_linear_classifier(
    objective: CrossEntropy, embeddings: Tensor, classes: Tensor, seed: int
) -> None:
    """Fit the classifier of an objective, in place, to fixed (n, d) embeddings and (n,) classes.

    Embeddings and classes are on the CPU, whatever the device of the classifier.
    """
    device = objective.classifier.weight.device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(objective.parameters(), HEAD_LEARNING_RATE)
    for _ in range(HEAD_EPOCHS):
        for batch in draw_batches(classes, _EVALUATION_BATCH, generator, balanced=False):
            loss = objective(embeddings[batch].clone().to(device), classes[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
