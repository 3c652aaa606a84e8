"""Training in this process or in several processes of the cluster, with a checkpoint per epoch."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.cluster.actor_pool import ACTOR_CPUS
from jobs.cluster.connection import resolve_address
from jobs.cluster.resources import Cluster, open_cluster
from jobs.runtime.progress import print_message
from retrieval.core import errors
from retrieval.core.errors import LookalikeError, Stalled, UsageError
from retrieval.core.schemas import WORK_FOLDER, Pooling
from retrieval.models.bundle import serialize_state
from retrieval.models.own_model import OwnModel
from retrieval.models.registry import WeightSource, add_model
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import Folder
from retrieval.training.checkpoint import read_checkpoint, write_checkpoint
from retrieval.training.distributed import ProcessGroup
from retrieval.training.loop import TrainingProgress, TrainingRecipe, train
from retrieval.training.network import build_trainable_backbone
from retrieval.training.objectives import make_objective
from retrieval.training.photos import DecodedPhotos, PhotoSplit, open_decoded

_WORKER_ERROR = f"{WORK_FOLDER}refused.json"

_MAX_RESTARTS = 3
"""Number of lost processes that are replaced in a run; one more ends the run."""


@dataclass(frozen=True)
class TrainingSetup:
    """The backbone with its weights, the objective and the recipe of a training."""

    source: WeightSource
    pooling: Pooling
    pretrained: bool
    objective: str
    recipe: TrainingRecipe
    own_model: OwnModel | None = None  # that `source` names, for other processes

    def digest(self) -> str:
        """Return the hex SHA-256 of the initial parameters."""
        return hashlib.sha256(serialize_state(self.source.state)).hexdigest()


def train_here_or_on_cluster(
    folder: Folder, setup: TrainingSetup, decoded: DecodedPhotos, photos: PhotoSplit, settings: Any
) -> tuple[TrainingProgress, str]:
    """Train in this process, or on the cluster if there are several workers or it has GPUs.

    `photos` is the split of the `decoded` photos. Returns the final progress and the device, `cpu`
    or `cuda`. Raises UsageError if --device cuda needs more GPUs than there are.
    """
    local, workers = local_device(settings.device), settings.workers or 1
    use_cluster = (
        local == "cpu" and settings.device != "cpu" and resolve_address(settings.ray_address)
    )
    if workers > 1 or use_cluster:
        with open_cluster(settings) as cluster:
            device = "cuda" if settings.device != "cpu" and cluster.gpus >= workers else "cpu"
            _check_device(settings.device, device)
            if workers > 1 or device == "cuda":
                return train_distributed(cluster, folder, setup, decoded, settings, device), device
    _check_device(settings.device, local)
    return train_here(folder, setup, photos, local), local


def local_device(requested: str | None) -> str:
    """Return the device of this process: cuda if it has a GPU, unless cpu is requested."""
    import torch

    return "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"


def _check_device(requested: str | None, device: str) -> None:
    if requested == "cuda" and device != "cuda":
        raise UsageError(
            "--device cuda: there are fewer GPUs than --workers, here or on the cluster of "
            "--ray-address; omit --device to train on CPUs"
        )


def train_here(
    folder: Folder, setup: TrainingSetup, photos: PhotoSplit, device: str
) -> TrainingProgress:
    """Train in this process, alone or as one of several, on `cpu` or `cuda`.

    Continues from the checkpoint in the output, and writes one per epoch.
    """
    processes = ProcessGroup()
    if setup.own_model is not None:
        add_model(setup.own_model)
    backbone = build_trainable_backbone(
        setup.source, setup.pooling, pretrained=setup.pretrained, device=device
    )
    recipe = setup.recipe
    dimension = _measure_dimension(backbone.extractor, setup.source.transform.image_size)
    classes = len(photos.training.names)
    objective = make_objective(setup.objective, dimension, classes, recipe.seed)

    def on_epoch(progress: TrainingProgress) -> None:
        if processes.rank == 0:
            write_checkpoint(folder, progress)
            _log_epoch(progress, recipe)

    return train(
        backbone, objective, photos, recipe, resume_from=read_checkpoint(folder),
        processes=processes, on_epoch=on_epoch,
    )  # fmt: skip


def _measure_dimension(extractor: Any, side: int) -> int:
    import torch

    extractor.eval()
    with torch.inference_mode():
        device = next(extractor.parameters()).device
        return int(extractor(torch.zeros(1, 3, side, side, device=device)).shape[1])


def _log_epoch(progress: TrainingProgress, recipe: TrainingRecipe) -> None:
    epoch = progress.history[-1]
    accuracy = "" if epoch.accuracy is None else f"accuracy {epoch.accuracy:.3f}, "
    print_message(
        f"train: epoch {epoch.epoch}/{recipe.epochs}, loss {epoch.loss:.3f}, {accuracy}"
        f"top-1 {epoch.top1:.3f}, mAP {epoch.map:.3f}"
    )


def train_distributed(
    cluster: Cluster, folder: Folder, setup: TrainingSetup, decoded: DecodedPhotos, settings: Any,
    device: str,
) -> TrainingProgress:  # fmt: skip
    """Train in processes started by Ray Train; lost ones are replaced and resume from checkpoints.

    The decoded photos are read from their folder, which all nodes must see. On the device cuda each
    process has its own GPU. Ray Train would retry after a LookalikeError as after the death of a
    process; so the error is written to the output, the retry ends at once, and the error is raised
    here.

    Raises:
        LookalikeError: As a process does.
        Stalled: If processes were lost more than `_MAX_RESTARTS` times.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    cluster.connect()
    split = {"by": settings.split_by, "share": settings.validation_fraction, "seed": settings.seed}
    photos_folder, items = decoded.folder, decoded.items

    def work(_: dict[str, Any]) -> None:
        if _read_worker_error(folder) is not None:
            return
        try:
            train_here(folder, setup, open_decoded(photos_folder, items).split(**split), device)
        except LookalikeError as error:
            folder.put(
                _WORKER_ERROR,
                checksummed_json({"error": type(error).__name__, "said": str(error)}),
            )
            raise

    ray_folder = photos_folder / "ray"  # Ray Train uses the home folder by default
    folder.delete(_WORKER_ERROR)
    trainer = TorchTrainer(
        work,
        train_loop_config={},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers or 1, use_gpu=device == "cuda",
            resources_per_worker={"CPU": ACTOR_CPUS, **({"GPU": 1} if device == "cuda" else {})},
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(ray_folder),
            failure_config=ray.train.FailureConfig(max_failures=_MAX_RESTARTS),
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _read_worker_error(folder) or Stalled(
            f"a process of `train` was lost more than {_MAX_RESTARTS} times "
            f"({_first_line(error)}); finished epochs are kept, run the same command again"
        ) from error
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    worker_error, progress = _read_worker_error(folder), read_checkpoint(folder)
    if worker_error is not None:
        raise worker_error
    assert progress is not None, "workers write a checkpoint before they end"
    return progress


def _read_worker_error(folder: Folder) -> LookalikeError | None:
    """Read the error that ended a worker process, if any."""
    with suppress(FileNotFoundError):
        values = parse_checksummed_json(folder.read(_WORKER_ERROR))
        if values is not None:
            error: LookalikeError = getattr(errors, values["error"])(values["said"])
            return error
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
