"""Which model do these options mean, and what runs it: made once by the driver, for all workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.cluster.resources import Cluster
from jobs.config.option_groups import EngineOptions, Model
from jobs.config.options import AUTO, OPTIONS
from jobs.config.settings import EmbedSettings
from jobs.runtime.progress import say
from retrieval.core.errors import LookalikeError, UsageError
from retrieval.core.records import Chunk, ChunkResult
from retrieval.embedding.attempt import Attempt
from retrieval.models.engine_plan import OPENVINO, TORCH, EnginePlan, plan_engine
from retrieval.storage import finished_output
from retrieval.storage.local import Folder

if TYPE_CHECKING:  # torch comes with these
    from retrieval.models.bundle import Bundle
    from retrieval.models.openvino import IR, Unfit


@dataclass(frozen=True)
class Prepared:
    """A model ready to be handed to workers."""

    bundle: Bundle
    plan: EnginePlan
    ir: IR | None = None  # where OpenVINO runs it
    unit = "images"

    @property
    def dimension(self) -> int:
        """Give the length of the vectors that come out."""
        return self.bundle.dimension

    @property
    def device(self) -> str:
        """Give cpu or cuda."""
        return self.plan.device

    def stored_dtype(self, asked: str) -> str:
        """Resolve `--embedding-dtype`."""
        return stored_dtype(asked)

    def job(self) -> dict[str, Any]:
        """Give what stands of the engine in job.json."""
        return dataclasses.asdict(self.plan)

    def ready(self) -> Prepared:
        """Convert the network for the engine, if that was left undone."""
        if self.ir is not None or self.plan.engine != OPENVINO:
            return self
        ir = _convert(self.bundle, self.plan)
        if isinstance(ir, Exception):
            raise _not_taken(self.bundle, ir)
        return dataclasses.replace(self, ir=ir)

    def for_workers(self) -> Prepared:
        """Leave out the parameters where the IR has them, so that no worker holds them twice."""
        if self.ir is None:
            return self
        return dataclasses.replace(self, bundle=dataclasses.replace(self.bundle, weights=b""))

    def chunk_step(
        self, folder: Folder, settings: EmbedSettings, threads: int
    ) -> Callable[[Chunk, Attempt], ChunkResult]:
        """Give what embeds a chunk; called once in each worker, by `for_workers()` of this."""
        from retrieval.embedding.embed_batch import Decoding
        from retrieval.embedding.embed_chunk import embed_chunk
        from retrieval.models.embedder import Embedder

        embedder = Embedder(self.bundle, self.plan, self.ir)
        decoding = Decoding(settings.max_pixels, settings.embedding_dtype, threads)
        return lambda chunk, attempt: embed_chunk(chunk, folder, embedder, decoding, attempt)


def prepare(
    settings: Any, where: Cluster, folder: Folder, *, bundle: Bundle | None = None
) -> Prepared:
    """Resolve model and engine, and convert the network for the engine while Ray starts.

    `settings` are those of a stage with `EngineOptions`, and with `Model` unless `bundle` is given.
    An output that was begun goes on with the engine it was begun with; where it is finished, or
    another engine is asked for (which will be refused), none is made ready.
    """
    asked = {f.name: getattr(settings, f.name) for f in dataclasses.fields(EngineOptions)}
    begun = None if settings.overwrite else _begun(folder)
    if begun is not None:
        named = {name: value for name, value in asked.items() if value is not None}
        plan = dataclasses.replace(begun, **named)
        if plan != begun or finished_output.is_finished(folder):
            return Prepared(bundle or bundle_of(settings), plan)
        asked = dataclasses.asdict(begun)

    def resolve() -> tuple[Bundle, IR | Unfit | None]:
        made = bundle or bundle_of(settings)
        plan = plan_engine(**asked, gpus=asked["device"] == "cuda")
        return made, _convert(made, plan) if plan.engine == OPENVINO else None

    made, ir = where.connect_while(resolve)
    plan = plan_engine(**asked, gpus=where.gpus > 0)
    if plan.engine != OPENVINO:
        if asked["engine"] is None and plan.device == "cpu":
            say("OpenVINO is not installed: torch runs the network, more slowly")
        return Prepared(made, plan)
    if isinstance(ir, Exception):
        return Prepared(made, _instead(settings, plan, made, ir))
    return Prepared(made, plan, ir)


def stored_dtype(asked: str) -> str:
    """Resolve `--embedding-dtype` for what a network made of images."""
    return "float16" if asked == AUTO else asked


def bundle_of(settings: Any) -> Bundle:
    """Make the bundle that the model options describe."""
    from retrieval.models.resolve import resolve_bundle

    names = {field.name for field in dataclasses.fields(Model)} - {"pca"}
    made = resolve_bundle(**{name: getattr(settings, name) for name in names})
    if settings.bundle is not None:
        _refuse_others(settings, made)
    return made


def _refuse_others(settings: Any, bundle: Bundle) -> None:
    """Refuse what is asked for of a model beside --bundle, which has its own answer to it."""
    own = {
        "backbone": bundle.backbone, "pooling": bundle.pooling, "normalize": bundle.normalize,
        "image_size": bundle.transform.image_size, "resize": bundle.transform.resize,
    }  # fmt: skip
    for name, stored in own.items():
        value, option = getattr(settings, name), OPTIONS[name]
        if value not in (option.default, stored):
            asked = f"{option.flag} {value}" if option.type is not bool else f"--no-{name}"
            raise UsageError(
                f"{asked} does not go with --bundle {settings.bundle}, which has {stored}; "
                "leave one of the two out"
            )


def begun_settings(folder: Folder) -> dict[str, Any] | None:
    """Give what an output is being made of; None where there is none, or none that can be read.

    Whoever begins the job says what is wrong with one that cannot.
    """
    try:
        return finished_output.read_settings(folder)
    except (OSError, LookalikeError):
        return None


def _begun(folder: Folder) -> EnginePlan | None:
    """Give the engine an output was begun with."""
    values = begun_settings(folder) or {}
    names = [field.name for field in dataclasses.fields(EnginePlan)]
    return EnginePlan(**{name: values[name] for name in names}) if names[0] in values else None


def _convert(bundle: Bundle, plan: EnginePlan) -> IR | Unfit:
    from retrieval.models.engines import convert_bundle
    from retrieval.models.openvino import Unfit

    try:
        return convert_bundle(bundle, plan)
    except Unfit as unfit:
        return unfit


def _instead(settings: Any, plan: EnginePlan, bundle: Bundle, why: Exception) -> EnginePlan:
    """Fall back to torch for a network that OpenVINO does not take; never if it was asked for."""
    if settings.engine is not None or plan.precision != "fp32":
        raise _not_taken(bundle, why)
    say(f"OpenVINO does not take {bundle.backbone} ({why}): torch runs it instead")
    return dataclasses.replace(plan, engine=TORCH)


def _not_taken(bundle: Bundle, why: Exception) -> UsageError:
    return UsageError(
        f"--engine openvino does not take {bundle.backbone} ({why}); use --engine torch"
    )
