"""Learning, here or by processes of the cluster; where it is stands on disk each epoch."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.cluster.actor_pool import ACTOR_CPUS
from jobs.cluster.connection import named
from jobs.cluster.resources import Cluster, cluster
from jobs.runtime.progress import say
from retrieval.core import errors
from retrieval.core.errors import LookalikeError, Stalled, UsageError
from retrieval.core.schemas import WORK, Pooling
from retrieval.models.bundle import pack
from retrieval.models.registry import Source
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.local import Folder
from retrieval.training.checkpoint import put_progress, read_progress
from retrieval.training.distributed import Together
from retrieval.training.loop import Progress, Recipe, train
from retrieval.training.network import make_body
from retrieval.training.objectives import make_objective
from retrieval.training.photos import Decoded, Photos, decoded_in

_REFUSED = f"{WORK}refused.json"

_DEATHS = 3
"""Lost processes that are replaced in a run; one more ends it, with its epochs kept."""


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


def learn_somewhere(
    folder: Folder, learning: Learning, found: Decoded, photos: Photos, settings: Any
) -> tuple[Progress, str]:
    """Learn here, or on the cluster if several processes are asked for or the GPUs are there.

    Gives the device as well.
    """
    here, workers = device_here(settings.device), settings.workers or 1
    elsewhere = here == "cpu" and settings.device != "cpu" and named(settings.ray_address)
    if workers > 1 or elsewhere:
        with cluster(settings) as where:
            there = "cuda" if settings.device != "cpu" and where.gpus >= workers else "cpu"
            _refuse_without(settings.device, there)
            if workers > 1 or there == "cuda":
                return learn_together(where, folder, learning, found, settings, there), there
    _refuse_without(settings.device, here)
    return learn(folder, learning, photos, here), here


def device_here(asked: str | None) -> str:
    """Give what this process computes on: cuda where it has a GPU, unless `cpu` is asked for."""
    import torch

    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _refuse_without(asked: str | None, device: str) -> None:
    if asked == "cuda" and device != "cuda":
        raise UsageError(
            "--device cuda: there are fewer GPUs than --workers, here or on the cluster of "
            "--ray-address; leave the option out to learn on CPUs"
        )


def learn(folder: Folder, learning: Learning, photos: Photos, device: str) -> Progress:
    """Learn in this process, or in each of those that learn together, on `cpu` or `cuda`."""
    together = Together()
    body = make_body(
        learning.backbone, learning.source, learning.pooling, pretrained=learning.pretrained,
        device=device,
    )  # fmt: skip
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
        device = next(extractor.parameters()).device
        return int(extractor(torch.zeros(1, 3, side, side, device=device)).shape[1])


def _say(progress: Progress, recipe: Recipe) -> None:
    epoch = progress.history[-1]
    told = "" if epoch.accuracy is None else f"accuracy {epoch.accuracy:.3f}, "
    say(
        f"train: epoch {epoch.epoch}/{recipe.epochs}, loss {epoch.loss:.3f}, {told}"
        f"top-1 {epoch.top1:.3f}, mAP {epoch.map:.3f}"
    )


def learn_together(
    where: Cluster, folder: Folder, learning: Learning, found: Decoded, settings: Any, device: str
) -> Progress:  # fmt: skip
    """Learn in processes that Ray Train starts; a lost one is replaced, and all go on from disk.

    The photos are read from the folder they were decoded into, which all nodes must see. On the
    device cuda each process has a GPU of its own. Ray Train would try a refusal again as if a
    process had died: so it is put down, the next try ends at once, and it is raised here.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    where.connect()
    split = {"by": settings.split_by, "share": settings.validation, "seed": settings.seed}
    place, items = found.folder, found.items

    def work(_: dict[str, Any]) -> None:
        if _refusal(folder) is not None:
            return
        try:
            learn(folder, learning, decoded_in(place, items).parted(**split), device)
        except LookalikeError as refusal:
            folder.put(
                _REFUSED, sealed_json({"error": type(refusal).__name__, "said": str(refusal)})
            )
            raise

    own = place / "ray"  # Ray Train's files would else lie in the user's home
    folder.delete(_REFUSED)
    trainer = TorchTrainer(
        work,
        train_loop_config={},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers or 1, use_gpu=device == "cuda",
            resources_per_worker={"CPU": ACTOR_CPUS, **({"GPU": 1} if device == "cuda" else {})},
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(own), failure_config=ray.train.FailureConfig(max_failures=_DEATHS)
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _refusal(folder) or Stalled(
            f"a process of `train` was lost more than {_DEATHS} times ({_first_line(error)}); the "
            "epochs that were finished are kept, run the same command again"
        ) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)
    refused, progress = _refusal(folder), read_progress(folder)
    if refused is not None:
        raise refused
    assert progress is not None, "an epoch is put before the workers end"
    return progress


def _refusal(folder: Folder) -> LookalikeError | None:
    """Read what a process refused to go on for."""
    with suppress(FileNotFoundError):
        note = read_json(folder.read(_REFUSED))
        if note is not None:
            refusal: LookalikeError = getattr(errors, note["error"])(note["said"])
            return refusal
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
