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
    from retrieval.models.openvino import IR, ConversionFailed


_WORKER_MODULES = ("retrieval.embedding.embed_chunk", "retrieval.models.embedder")
"""Modules that workers of images need; they load torch and OpenVINO."""


@dataclass(frozen=True)
class PreparedModel:
    """A model and its engine, ready to be sent to workers."""

    bundle: Bundle
    plan: EnginePlan
    ir: IR | None = None  # the network in OpenVINO's format, if that is the engine
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
        """Return a copy without the weights if the IR contains them, to save memory of workers."""
        if self.ir is None:
            return self
        return dataclasses.replace(self, bundle=dataclasses.replace(self.bundle, weights=b""))

    def make_chunk_function(
        self, folder: Folder, settings: EmbedSettings, threads: int
    ) -> Callable[[Chunk, Attempt], ChunkResult]:
        """Return the function that embeds a chunk; called once in each worker."""
        from retrieval.embedding.embed_batch import DecodeSettings
        from retrieval.embedding.embed_chunk import embed_chunk
        from retrieval.models.embedder import Embedder

        embedder = Embedder(self.bundle, self.plan, self.ir)
        decoding = DecodeSettings(settings.max_pixels, settings.embedding_dtype, threads)
        return lambda chunk, attempt: embed_chunk(chunk, folder, embedder, decoding, attempt)


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
            plan = plan_engine(**requested, gpus=requested["device"] == "cuda")
            return resolved, _convert(resolved, plan) if plan.engine == OPENVINO else None

    def start_worker() -> None:
        """Start one worker, which every step needs, while the network is converted."""
        device = plan_engine(**requested, gpus=cluster.gpus > 0).device
        start_first_worker(cluster, device, _WORKER_MODULES)

    resolved, ir = cluster.connect_while(resolve, start_worker)
    plan = plan_engine(**requested, gpus=cluster.gpus > 0)
    if plan.engine != OPENVINO:
        if requested["engine"] is None and plan.device == "cpu":
            print_message("OpenVINO is not installed: torch runs the network, more slowly")
        return PreparedModel(resolved, plan)
    if isinstance(ir, Exception):
        return PreparedModel(resolved, _fall_back_to_torch(settings, plan, resolved, ir))
    return PreparedModel(resolved, plan, ir)


def resolve_embedding_dtype(embedding_dtype: str) -> str:
    """Resolve `--embedding-dtype` for embeddings of images: float16 by default."""
    return "float16" if embedding_dtype == AUTO else embedding_dtype


def load_bundle(settings: Any) -> Bundle:
    """Return the bundle that the model options describe.

    Raises:
        UsageError: If an option contradicts the bundle that `--bundle` names.
    """
    from retrieval.models.resolve import resolve_bundle

    names = {field.name for field in dataclasses.fields(ModelOptions)} - {"pca"}
    bundle = resolve_bundle(**{name: getattr(settings, name) for name in names})
    if settings.bundle is not None:
        _refuse_contradictions(settings, bundle)
    return bundle


def _refuse_contradictions(settings: Any, bundle: Bundle) -> None:
    """Raise UsageError if a model option differs from the value in the bundle of `--bundle`."""
    bundle_values = {
        "backbone": bundle.backbone, "pooling": bundle.pooling, "normalize": bundle.normalize,
        "image_size": bundle.transform.image_size, "resize": bundle.transform.resize,
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
    if settings.engine is not None or plan.precision != "fp32":
        raise _conversion_error(bundle, reason)
    print_message(f"OpenVINO cannot convert {bundle.backbone} ({reason}): torch runs it instead")
    return dataclasses.replace(plan, engine=TORCH)


def _conversion_error(bundle: Bundle, reason: Exception) -> UsageError:
    return UsageError(
        f"--engine openvino cannot convert {bundle.backbone} ({reason}); use --engine torch"
    )
