"""Import precomputed vectors into a store at INDEX/embeddings, from which the index is built.

So an index is always built from a store: changes of the source are appended to it, and vectors that
cannot be imported are recorded in its ledger.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings, IndexSettings, content_settings, derive_settings
from jobs.embedding.embed import embed, is_output_path
from jobs.embedding.precomputed_vectors import (
    PrecomputedVectors,
    import_option_names,
    open_precomputed_vectors,
)
from retrieval.core.errors import InputError, UsageError
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store

EMBEDDINGS = "embeddings"


def import_into_index(settings: IndexSettings, cluster: Cluster, index: Folder) -> Store:
    """Claim an index of precomputed vectors and update its store from their source.

    Returns:
        The store, from which the index is built.
    """
    vectors = open_precomputed_vectors(settings.embeddings, settings, metric=settings.metric)
    dtype = vectors.resolve_dtype(settings.embedding_dtype)
    settings = dataclasses.replace(settings, embedding_dtype=dtype)
    store = index.child(EMBEDDINGS)
    transaction.claim_output(
        index, "index", _job_settings(settings, vectors, store), overwrite=settings.overwrite
    )
    importing = derive_settings(
        settings, EmbedSettings, input=settings.embeddings, output=store.uri()
    )
    embed(
        importing, cluster, prepared=vectors, split="gallery", stage="import vectors",
        invalidate=lambda: index.delete(finished_output.MANIFEST),
    )  # fmt: skip
    return open_store(store)


def _job_settings(
    settings: IndexSettings, vectors: PrecomputedVectors, store: Folder
) -> dict[str, Any]:
    return {
        **content_settings(settings),
        "vectors": open_folder(settings.embeddings).uri(),
        "embeddings": store.uri(),
        "dimension": vectors.dimension,
        "bundle": None,
    }


def format_skipped_vectors(index: Folder) -> str | None:
    """Format the number of vectors that could not be imported into an index; None if it is 0."""
    if finished_output.read_settings(index)["bundle"] is not None:
        return None
    try:
        counts = finished_output.read_manifest(index.child(EMBEDDINGS), kind="store").counts
    except InputError:  # built from another store of imported vectors, which has its own ledger
        return None
    if not counts["failures"]:
        return None
    ledger = index.uri(f"{EMBEDDINGS}/segments/*/failures")
    return f"{counts['failures']} of {counts['images']} vectors are left out: {ledger}"


def refuse_import_options(settings: IndexSettings) -> None:
    """Raise UsageError if an option for precomputed vectors is given for a store."""
    if not is_output_path(settings.embeddings):
        return
    for name in sorted(import_option_names()):
        default = EmbedSettings.__dataclass_fields__[name].default
        if getattr(settings, name) not in (None, default):
            raise UsageError(
                f"--{name.replace('_', '-')} is for precomputed vectors, and "
                f"{settings.embeddings} is a store; omit it"
            )
