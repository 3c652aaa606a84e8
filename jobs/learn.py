"""Learning, here or by several processes of the cluster; where it is stands on disk each epoch."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import Any

from jobs.cluster import Cluster
from jobs.progress import say
from retrieval.model.backbones import Source
from retrieval.model.bundle import pack
from retrieval.storage.files import Folder
from retrieval.tables import Pooling
from retrieval.training.checkpoint import put_progress, read_progress
from retrieval.training.loop import Progress, Recipe, train
from retrieval.training.network import make_body
from retrieval.training.objectives import make_objective
from retrieval.training.photos import Decoded, Photos, decoded_in
from retrieval.training.together import Together


@dataclass(frozen=True)
class Learning:
    """What learns, and how."""

    backbone: str
    source: Source
    pooling: Pooling
    pretrained: bool
    objective: str
    recipe: Recipe

    def digest(self) -> str:
        """Give the SHA-256 of the parameters that it begins with."""
        return hashlib.sha256(pack(self.source.state)).hexdigest()


def learn(folder: Folder, learning: Learning, photos: Photos) -> Progress:
    """Learn in this process, or in each of those that learn together."""
    together = Together()
    body = make_body(
        learning.backbone, learning.source, learning.pooling, pretrained=learning.pretrained
    )
    recipe = learning.recipe
    dimension = _dimension(body.extractor, learning.source.transform.image_size)
    classes = len(photos.training.names)
    objective = make_objective(learning.objective, dimension, classes, recipe.seed)

    def on_epoch(progress: Progress) -> None:
        if together.rank == 0:
            put_progress(folder, progress)
            _say(progress, recipe)

    return train(
        body, objective, photos, recipe, before=read_progress(folder), together=together,
        on_epoch=on_epoch,
    )  # fmt: skip


def _dimension(extractor: Any, side: int) -> int:
    import torch

    extractor.eval()
    with torch.inference_mode():
        return int(extractor(torch.zeros(1, 3, side, side)).shape[1])


def _say(progress: Progress, recipe: Recipe) -> None:
    epoch = progress.history[-1]
    told = "" if epoch.accuracy is None else f"accuracy {epoch.accuracy:.3f}, "
    say(
        f"train: epoch {epoch.epoch}/{recipe.epochs}, loss {epoch.loss:.3f}, {told}"
        f"top-1 {epoch.top1:.3f}, mAP {epoch.map:.3f}"
    )


def learn_together(
    where: Cluster, folder: Folder, learning: Learning, found: Decoded, settings: Any
) -> Progress:  # fmt: skip
    """Learn in several processes by Ray Train; a lost one is replaced, and all go on from disk.

    The photos are read from the folder they were decoded into, which all nodes must see.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    where.connect()
    split = {"by": settings.split_by, "share": settings.validation, "seed": settings.seed}
    place, items = found.folder, found.items

    def work(_: dict[str, Any]) -> None:
        learn(folder, learning, decoded_in(place, items).parted(**split))

    own = place / "ray"  # Ray Train's files would else lie in the user's home
    trainer = TorchTrainer(
        work,
        train_loop_config={},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers, resources_per_worker={"CPU": 0.5}
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(own), failure_config=ray.train.FailureConfig(max_failures=3)
        ),
    )
    trainer.fit()
    shutil.rmtree(own, ignore_errors=True)
    progress = read_progress(folder)
    assert progress is not None, "an epoch is put before the workers end"
    return progress
