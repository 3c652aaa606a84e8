"""Which queries are meant: a store, or images that pass through one with the index's own model."""

from __future__ import annotations

from collections.abc import Callable

from jobs.cluster import Cluster
from jobs.embed import embed, is_store
from jobs.prepare import Prepared, prepare
from jobs.settings import EmbedSettings, RankSettings, part_of
from retrieval.embeddings.store import Store, open_store
from retrieval.errors import Mismatch
from retrieval.storage import finished
from retrieval.storage.files import Folder, open_folder

QUERIES = "queries"


def given_store(settings: RankSettings, index: Folder) -> Store | None:
    """Open the store that `--queries` names; None where it names images."""
    if not is_store(settings.queries):
        return None
    given = open_store(open_folder(settings.queries))
    if given.bundle != finished.read_settings(index)["bundle"]:
        raise Mismatch(
            f"--queries {settings.queries} was embedded with another model than the index "
            f"{settings.index}; embed the queries with --bundle {settings.index}"
        )
    return given


def prepare_queries(
    settings: RankSettings, where: Cluster, output: Folder, index: Folder
) -> Prepared:
    """Make the index's own bundle ready for images."""
    from retrieval.model.bundle import read_bundle

    return prepare(settings, where, output, bundle=read_bundle(index))


def embed_queries(
    settings: RankSettings,
    where: Cluster,
    index: Folder,
    prepared: Prepared | None,
    unsettle: Callable[[], None],
) -> Store:
    """Pass query images through a store of the index's dtype, beside the matches."""
    output = open_folder(settings.output).child(QUERIES).uri()
    dtype = finished.read_settings(index)["embedding_dtype"]
    embedding = part_of(
        settings, EmbedSettings, input=settings.queries, output=output, embedding_dtype=dtype,
    )  # fmt: skip
    embed(
        embedding, where, prepared=prepared, split="queries", stage="embed queries",
        keep_equal=True, unsettle=unsettle,
    )  # fmt: skip
    return open_store(open_folder(output))
