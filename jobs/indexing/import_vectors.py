"""lookalike index on vectors made elsewhere: the store at INDEX/embeddings that they pass through.

So all that comes after a store is the same for them: what grew is appended, what was lost is told.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings, IndexSettings, content_of, part_of
from jobs.embedding.embed import embed, is_store
from jobs.embedding.precomputed_vectors import Given, given_vectors, of_elsewhere
from retrieval.core.errors import InputError, UsageError
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store

EMBEDDINGS = "embeddings"


def take_into(settings: IndexSettings, where: Cluster, index: Folder) -> Store:
    """Claim an index of vectors made elsewhere, and bring its store of them up to their source."""
    given = given_vectors(settings.embeddings, settings, metric=settings.metric)
    dtype = given.stored_dtype(settings.embedding_dtype)
    settings = dataclasses.replace(settings, embedding_dtype=dtype)
    place = index.child(EMBEDDINGS)
    transaction.begin(index, "index", _job(settings, given, place), overwrite=settings.overwrite)
    taking = part_of(settings, EmbedSettings, input=settings.embeddings, output=place.uri())
    embed(
        taking, where, prepared=given, split="gallery", stage="take vectors",
        unsettle=lambda: index.delete(finished_output.MANIFEST),
    )  # fmt: skip
    return open_store(place)


def _job(settings: IndexSettings, given: Given, place: Folder) -> dict[str, Any]:
    return {
        **content_of(settings),
        "vectors": open_folder(settings.embeddings).uri(),
        "embeddings": place.uri(),
        "dimension": given.dimension,
        "bundle": None,
    }


def lost(index: Folder) -> str | None:
    """Say how many vectors an index made elsewhere lacks, if any."""
    if finished_output.read_settings(index)["bundle"] is not None:
        return None
    try:
        counts = finished_output.read_manifest(index.child(EMBEDDINGS), kind="store").counts
    except InputError:  # of a store of such vectors, which answers for itself
        return None
    if not counts["failures"]:
        return None
    ledger = index.uri(f"{EMBEDDINGS}/segments/*/failures")
    return f"{counts['failures']} of {counts['images']} vectors are left out: {ledger}"


def refuse_for_a_store(settings: IndexSettings) -> None:
    """Refuse options that only vectors made elsewhere have, beside a store."""
    if not is_store(settings.embeddings):
        return
    given = (name for name in sorted(of_elsewhere()) if getattr(settings, name) is not None)
    for name in given:
        default = EmbedSettings.__dataclass_fields__[name].default
        if getattr(settings, name) != default:
            raise UsageError(
                f"--{name.replace('_', '-')} is for vectors made elsewhere, and "
                f"{settings.embeddings} is a store; leave it away"
            )
