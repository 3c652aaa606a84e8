"""Which queries are meant: a store, or images or vectors that pass through one."""

from __future__ import annotations

from collections.abc import Callable

from jobs.cluster.resources import Cluster
from jobs.config.options import AUTO
from jobs.config.settings import EmbedSettings, RankSettings, part_of
from jobs.embedding.embed import embed, is_store
from jobs.embedding.precomputed_vectors import Given, are_vectors, given_vectors
from jobs.embedding.prepare_model import Prepared, prepare
from retrieval.core.errors import Mismatch, UsageError
from retrieval.sources.vectors import hold_vectors
from retrieval.storage import finished_output
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store

QUERIES = "queries"


def given_store(settings: RankSettings, index: Folder) -> Store | None:
    """Open the store that `--queries` names; None where it names images, or vectors in files."""
    if not is_store(settings.queries):
        return None
    if settings.limit is not None:
        raise UsageError(
            f"--limit takes the first of some images, and --queries {settings.queries} is a store "
            "of them; leave it away, or name the images"
        )
    given = open_store(open_folder(settings.queries))
    _check_model(settings, given.bundle, index)
    _check_dimension(settings, given.dimension, index)
    return given


def _check_model(settings: RankSettings, bundle: str | None, index: Folder) -> None:
    """Refuse queries of another model; vectors made elsewhere, on both sides, have none."""
    made = finished_output.read_settings(index)["bundle"]
    if bundle == made:
        return
    if bundle is None:
        why = (
            f"holds vectors made elsewhere, and the index {settings.index} those of a model; rank "
            "images, or a store that was embedded with it"
        )
    elif made is None:
        why = (
            f"was embedded with a model, and the index {settings.index} holds vectors made "
            "elsewhere; give vectors that were made like them"
        )
    else:
        why = (
            f"was embedded with another model than the index {settings.index}; embed the queries "
            f"with --bundle {settings.index}"
        )
    raise Mismatch(f"--queries {settings.queries} {why}")


def _check_dimension(settings: RankSettings, dimension: int, index: Folder) -> None:
    there = finished_output.read_manifest(index, kind="index").counts["dimension"]
    if dimension != there:
        raise Mismatch(
            f"--queries {settings.queries} has vectors of {dimension} numbers, and the index "
            f"{settings.index} of {there}; give vectors that were made like those"
        )


def prepare_queries(
    settings: RankSettings, where: Cluster, output: Folder, index: Folder
) -> Prepared | Given:
    """Make the index's own bundle ready for images; vectors in files need none."""
    from retrieval.models.bundle import read_bundle

    made = finished_output.read_settings(index)["bundle"]
    if are_vectors(settings.queries, settings) or (made is None and hold_vectors(settings.queries)):
        _check_model(settings, None, index)
        metric = finished_output.read_manifest(index, kind="index").counts["metric"]
        given = given_vectors(settings.queries, settings, metric=metric)
        _check_dimension(settings, given.dimension, index)
        return given
    if made is None:
        raise Mismatch(
            f"--queries {settings.queries} holds images, and the index {settings.index} was made "
            "of vectors without their model; give vectors that were made like them (.npy, Parquet)"
        )
    return prepare(settings, where, output, bundle=read_bundle(index))


def embed_queries(
    settings: RankSettings,
    where: Cluster,
    index: Folder,
    prepared: Prepared | Given | None,
    unsettle: Callable[[], None],
) -> Store:
    """Pass query images, or vectors, through a store of their own, beside the matches.

    Images are rounded as those of the index were; vectors keep the precision they have.
    """
    output = open_folder(settings.output).child(QUERIES).uri()
    made = finished_output.read_settings(index)["embedding_dtype"]
    dtype = AUTO if isinstance(prepared, Given) else made
    embedding = part_of(
        settings, EmbedSettings, input=settings.queries, output=output, embedding_dtype=dtype,
    )  # fmt: skip
    embed(
        embedding, where, prepared=prepared, split="queries",
        stage="take queries" if isinstance(prepared, Given) else "embed queries",
        keep_equal=True, unsettle=unsettle,
    )  # fmt: skip
    return open_store(open_folder(output))
