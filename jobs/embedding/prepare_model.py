"""Resolution of the model options to a bundle and an inference engine, once, on the driver.

The result, `PreparedModel`, is sent to all workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.cluster.actor_pool import start_first_worker
from jobs.cluster.resources import Cluster
from jobs.config.options import AUTO, OPTIONS
from jobs.config.settings import EmbedSettings, EngineOptions, ModelOptions
from jobs.embedding.recipe import applied_recipe
from jobs.runtime.profile import CONVERT
from jobs.runtime.progress import print_message
from retrieval.core.errors import LookalikeError, UsageError
from retrieval.core.records import Chunk, ChunkResult
from retrieval.embedding.attempt import Attempt
from retrieval.models.engine_plan import OPENVINO, TORCH, EnginePlan, plan_engine
from retrieval.storage import finished_output
from retrieval.storage.local import Folder

if TYPE_CHECKING:  # torch comes with these
    from retrieval.models.bundle import Bundle
    from retrieval.models.embedder import Embedder
    from retrieval.models.openvino import IR, ConversionFailed
    from retrieval.models.own_model import OwnModel


_WORKER_MODULES = ("retrieval.embedding.embed_chunk", "retrieval.models.embedder")
"""Modules that workers of images need; they load torch and OpenVINO."""


@dataclass(frozen=True)
class PreparedModel:
    """A model and its engine, ready to be sent to workers."""

    bundle: Bundle
    plan: EnginePlan
    ir: IR | None = None  # the network in OpenVINO's format, if that is the engine
    own_model: OwnModel | None = None  # in workers: the user's own model, if they run its code
    unit = "images"

    @property
    def dimension(self) -> int:
        """Return the length of the embeddings."""
        return self.bundle.dimension

    @property
    def device(self) -> str:
        """Return "cpu" or "cuda"."""
        return self.plan.device

    def resolve_dtype(self, embedding_dtype: str) -> str:
        """Resolve `--embedding-dtype`."""
        return resolve_embedding_dtype(embedding_dtype)

    def job_fields(self) -> dict[str, Any]:
        """Return the fields of job.json for the engine."""
        return dataclasses.asdict(self.plan)

    def with_engine(self) -> PreparedModel:
        """Return a copy with the network converted for the engine; raise UsageError on failure."""
        if self.ir is not None or self.plan.engine != OPENVINO:
            return self
        ir = _convert(self.bundle, self.plan)
        if isinstance(ir, Exception):
            raise _conversion_error(self.bundle, ir)
        return dataclasses.replace(self, ir=ir)

    def for_workers(self) -> PreparedModel:
        """Return a copy with what workers need: the weights unless the IR contains them."""
        if self.ir is None:
            from retrieval.models.registry import find_own_model

            own_model = find_own_model(self.bundle.backbone)
            return self if own_model is None else dataclasses.replace(self, own_model=own_model)
        return dataclasses.replace(self, bundle=dataclasses.replace(self.bundle, weights=b""))

    def load_embedder(self) -> Embedder:
        """Load the network in a worker."""
        from retrieval.models.embedder import Embedder

        if self.own_model is not None:
            from retrieval.models.registry import add_model

            add_model(self.own_model)
        return Embedder(self.bundle, self.plan, self.ir)

    def make_chunk_function(
        self, folder: Folder, settings: EmbedSettings, threads: int
    ) -> Callable[..., ChunkResult]:
        """Return the function that embeds a chunk; called once in each worker.

        It takes the chunk, the attempt, and the decoded batches of the chunk if other processes
        decode.
        """
        from retrieval.embedding.embed_batch import DecodeSettings
        from retrieval.embedding.embed_chunk import embed_chunk, embed_decoded_chunk

        embedder = self.load_embedder()
        decoding = DecodeSettings(settings.max_pixels, settings.embedding_dtype, threads)

        def embed(chunk: Chunk, attempt: Attempt, *batches: Any) -> ChunkResult:
            if batches:
                dtype = settings.embedding_dtype
                return embed_decoded_chunk(chunk, folder, embedder, dtype, batches)
            return embed_chunk(chunk, folder, embedder, decoding, attempt)

        return embed


def prepare_model(
    settings: Any, cluster: Cluster, folder: Folder, *, bundle: Bundle | None = None
) -> PreparedModel:
    """Resolve model and engine, and convert the network for the engine while Ray starts.

    Args:
        settings: Settings with the engine options, and with the model options unless `bundle` is
            given.
        cluster: The cluster; it is connected while the network is converted.
        folder: The output. An unfinished one keeps its engine; if it is finished, or if another
            engine is requested (which the caller rejects), nothing is converted.
        bundle: The model, if the settings do not define it.

    Raises:
        UsageError: If the options contradict each other, or OpenVINO is required and cannot convert
            the network.
    """
    requested = {f.name: getattr(settings, f.name) for f in dataclasses.fields(EngineOptions)}
    begun = None if settings.overwrite else _read_begun_plan(folder)
    if begun is not None:
        overrides = {name: value for name, value in requested.items() if value is not None}
        plan = dataclasses.replace(begun, **overrides)
        if plan != begun or finished_output.is_finished(folder):
            return PreparedModel(bundle or load_bundle(settings), plan)
        requested = dataclasses.asdict(begun)

    def resolve() -> tuple[Bundle, IR | ConversionFailed | None]:
        with cluster.profile.step(CONVERT):
            resolved = bundle or load_bundle(settings)
            options = _engine_options(requested, resolved)
            plan = plan_engine(**options, gpus=options["device"] == "cuda")
            return resolved, _convert(resolved, plan) if plan.engine == OPENVINO else None

    def start_worker() -> None:
        """Start one worker, which every step needs, while the network is converted."""
        device = plan_engine(**requested, gpus=cluster.gpus > 0).device
        start_first_worker(cluster, device, _WORKER_MODULES)

    resolved, ir = cluster.connect_while(resolve, start_worker)
    plan = plan_engine(**_engine_options(requested, resolved), gpus=cluster.gpus > 0)
    if plan.engine != OPENVINO:
        if requested["engine"] is None and plan.device == "cpu":
            print_message("OpenVINO is not installed: torch runs the network, more slowly")
        return PreparedModel(resolved, plan)
    if isinstance(ir, Exception):
        return PreparedModel(resolved, _fall_back_to_torch(settings, plan, resolved, ir))
    return PreparedModel(resolved, plan, ir)


def _engine_options(requested: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    """Return the engine options for a bundle: an ONNX network is run by OpenVINO only."""
    if not bundle.is_onnx:
        return requested
    if requested["engine"] == TORCH or requested["device"] == "cuda":
        raise UsageError(
            f"{bundle.backbone} is run by OpenVINO on CPUs; omit --engine torch and --device cuda"
        )
    return {**requested, "engine": OPENVINO}


def resolve_embedding_dtype(embedding_dtype: str) -> str:
    """Resolve `--embedding-dtype` for embeddings of images: float16 by default."""
    return "float16" if embedding_dtype == AUTO else embedding_dtype


def load_bundle(settings: Any) -> Bundle:
    """Return the bundle that the model options describe.

    Raises:
        UsageError: If an option contradicts the bundle that `--bundle` names.
    """
    from retrieval.models.resolve import resolve_bundle

    names = {field.name for field in dataclasses.fields(ModelOptions)} - {"pca", "recipe"}
    options = {name: getattr(settings, name) for name in names}
    bundle = resolve_bundle(**options, recipe=applied_recipe(settings))
    if settings.bundle is not None:
        _refuse_contradictions(settings, bundle)
    return bundle


def read_index_bundle(settings: Any, index: Folder) -> Bundle:
    """Read the bundle of an index to embed queries with it.

    Raises:
        UsageError: If it is a model of the user's own that --backbone does not name, or --backbone
            names another one.
        Mismatch: If the source of the user's model is not that of the bundle.
    """
    from retrieval.models.bundle import read_bundle
    from retrieval.models.registry import add_named_model
    from retrieval.models.resolve import check_runnable, is_same_backbone

    bundle = read_bundle(index)
    if settings.backbone is not None:
        if not is_same_backbone(settings.backbone, bundle.backbone):
            raise UsageError(
                f"--backbone {settings.backbone} contradicts --index {settings.index}, which has "
                f"{bundle.backbone}; omit it, or name that"
            )
        add_named_model(settings.backbone, settings.python_path)
    check_runnable(bundle)
    return bundle


def _refuse_contradictions(settings: Any, bundle: Bundle) -> None:
    """Raise UsageError if a model option differs from the value in the bundle of `--bundle`."""
    from retrieval.models.resolve import is_same_backbone
    from retrieval.models.transforms import override_transform

    transform = override_transform(bundle.transform, mean=settings.mean, std=settings.std)
    is_same = is_same_backbone(settings.backbone, bundle.backbone)
    bundle_values = {
        "backbone": settings.backbone if is_same else bundle.backbone,
        "pooling": bundle.pooling, "normalize": bundle.normalize,
        "image_size": bundle.transform.image_size, "resize": bundle.transform.resize,
        "interpolation": bundle.transform.interpolation,
        "augment_inference": bundle.augment_inference,
        "mean": settings.mean if transform.mean == bundle.transform.mean else bundle.transform.mean,
        "std": settings.std if transform.std == bundle.transform.std else bundle.transform.std,
    }  # fmt: skip
    for name, stored in bundle_values.items():
        value, option = getattr(settings, name), OPTIONS[name]
        if value not in (option.default, stored):
            text = f"{option.flag} {value}" if option.type is not bool else f"--no-{name}"
            raise UsageError(
                f"{text} contradicts --bundle {settings.bundle}, which has {stored}; omit one of "
                "the two"
            )


def read_begun_settings(folder: Folder) -> dict[str, Any] | None:
    """Read the settings of an existing output; None if there are none or they cannot be read.

    Unreadable settings are reported when the output is claimed.
    """
    try:
        return finished_output.read_settings(folder)
    except (OSError, LookalikeError):
        return None


def _read_begun_plan(folder: Folder) -> EnginePlan | None:
    """Read the engine plan of an existing output; None if it has none."""
    values = read_begun_settings(folder) or {}
    names = [field.name for field in dataclasses.fields(EnginePlan)]
    return EnginePlan(**{name: values[name] for name in names}) if names[0] in values else None


def _convert(bundle: Bundle, plan: EnginePlan) -> IR | ConversionFailed:
    from retrieval.models.engines import convert_bundle
    from retrieval.models.openvino import ConversionFailed

    try:
        return convert_bundle(bundle, plan)
    except ConversionFailed as error:
        return error


def _fall_back_to_torch(
    settings: Any, plan: EnginePlan, bundle: Bundle, reason: Exception
) -> EnginePlan:
    """Return the plan with torch as engine; raise UsageError if OpenVINO is required."""
    if settings.engine is not None or plan.precision != "fp32" or bundle.is_onnx:
        raise _conversion_error(bundle, reason)
    print_message(f"OpenVINO cannot convert {bundle.backbone} ({reason}): torch runs it instead")
    return dataclasses.replace(plan, engine=TORCH)


def _conversion_error(bundle: Bundle, reason: Exception) -> UsageError:
    remedy = "change --batch-size, or export it again" if bundle.is_onnx else "use --engine torch"
    return UsageError(f"--engine openvino cannot convert {bundle.backbone} ({reason}); {remedy}")
