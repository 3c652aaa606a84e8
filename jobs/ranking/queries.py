"""The query store: opened, or written from query images or vectors.

Queries must have been embedded by the model of the index, and have its dimension.
"""

from __future__ import annotations

from collections.abc import Callable

from jobs.cluster.resources import Cluster
from jobs.config.options import AUTO, OPTIONS
from jobs.config.settings import EmbedSettings, RankSettings, derive_settings
from jobs.embedding.embed import embed, is_output_path
from jobs.embedding.precomputed_vectors import (
    PrecomputedVectors,
    is_vector_source,
    open_precomputed_vectors,
)
from jobs.embedding.prepare_model import PreparedModel, prepare_model, read_index_bundle
from retrieval.core.errors import Mismatch, UsageError
from retrieval.sources.vectors import contains_vectors
from retrieval.storage import finished_output
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store

QUERIES = "queries"


def open_query_store(settings: RankSettings, index: Folder) -> Store | None:
    """Return the store that --queries names; None if it names images, or vectors in files.

    Raises Mismatch if model or dimension are not those of the index.
    """
    if not is_output_path(settings.queries):
        return None
    if settings.limit is not None:
        raise UsageError(
            f"--limit applies to images, and --queries {settings.queries} is a store; omit it, or "
            "specify the images"
        )
    store = open_store(open_folder(settings.queries))
    _check_model(settings, store.bundle, index)
    _check_dimension(settings, store.dimension, index)
    return store


def _check_model(settings: RankSettings, bundle: str | None, index: Folder) -> None:
    """Raise Mismatch if the model of the queries is not that of the index.

    `bundle` is the digest of their model, None for imported vectors.
    """
    index_bundle = finished_output.read_settings(index)["bundle"]
    if bundle == index_bundle:
        return
    if bundle is None:
        reason = (
            f"holds imported vectors, and the index {settings.index} vectors of a model; rank "
            "images, or a store that was embedded with that model"
        )
    elif index_bundle is None:
        reason = (
            f"was embedded with a model, and the index {settings.index} holds imported vectors; "
            "import query vectors from the same source"
        )
    else:
        reason = (
            f"was embedded with another model than the index {settings.index}; embed the queries "
            f"with --bundle {settings.index}"
        )
    raise Mismatch(f"--queries {settings.queries} {reason}")


def _check_dimension(settings: RankSettings, dimension: int, index: Folder) -> None:
    expected = finished_output.read_manifest(index, kind="index").counts["dimension"]
    if dimension != expected:
        raise Mismatch(
            f"--queries {settings.queries} has vectors of dimension {dimension}, and the index "
            f"{settings.index} of dimension {expected}; use vectors from the same source"
        )


def prepare_queries(
    settings: RankSettings, cluster: Cluster, output: Folder, index: Folder
) -> PreparedModel | PrecomputedVectors:
    """Return the prepared model of the index for query images, or the opened vector files."""
    bundle = finished_output.read_settings(index)["bundle"]
    if is_vector_source(settings.queries, settings) or (
        bundle is None and contains_vectors(settings.queries)
    ):
        _check_model(settings, None, index)
        metric = finished_output.read_manifest(index, kind="index").counts["metric"]
        vectors = open_precomputed_vectors(settings.queries, settings, metric=metric)
        _check_dimension(settings, vectors.dimension, index)
        return vectors
    if bundle is None:
        raise Mismatch(
            f"--queries {settings.queries} holds images, and the index {settings.index} imported "
            "vectors without a model; import query vectors from the same source (.npy, Parquet)"
        )
    return prepare_model(settings, cluster, output, bundle=read_index_bundle(settings, index))


def embed_queries(
    settings: RankSettings,
    cluster: Cluster,
    index: Folder,
    prepared: PreparedModel | PrecomputedVectors | None,
    invalidate: Callable[[], None],
) -> Store:
    """Write query images or vectors to a store beside the matches, and open it.

    Embeddings of images get the dtype of the index; imported vectors keep theirs. `invalidate` is
    called before the store is changed.
    """
    output = open_folder(settings.output).child(QUERIES).uri()
    index_dtype = finished_output.read_settings(index)["embedding_dtype"]
    dtype = AUTO if isinstance(prepared, PrecomputedVectors) else index_dtype
    embedding = derive_settings(
        settings, EmbedSettings, input=settings.queries, output=output, embedding_dtype=dtype,
        backbone=OPTIONS["backbone"].default, pca=0,  # the model is that of the index
    )  # fmt: skip
    embed(
        embedding, cluster, prepared=prepared, split="queries",
        stage="import queries" if isinstance(prepared, PrecomputedVectors) else "embed queries",
        reuse_if_same=True, invalidate=invalidate,
    )  # fmt: skip
    return open_store(open_folder(output))
