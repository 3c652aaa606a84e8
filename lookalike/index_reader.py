"""Indexes: search of an index in this process, and the index as one FAISS index."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lookalike.html_view import properties, read_pictures
from lookalike.index_search import ShardIndex
from lookalike.input_types import Backbone
from lookalike.match_reader import Matches
from retrieval.core.errors import Mismatch, UsageError
from retrieval.core.schemas import SHARD_ROWS, Vectors
from retrieval.index.probing import Probing
from retrieval.index.shard import read_live_rows
from retrieval.models.own_model import Model
from retrieval.search.merge import rank_candidates
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Index:
    """A finished index, searched in this process without Ray.

    Attributes:
        shards: The opened index; shards are kept in memory up to its limit.
        settings: Settings that the index was built with.
        backbone: The user's own model that its images were embedded with, if they were.
        python_path: Folder with the module of that model.
    """

    shards: ShardIndex
    settings: dict[str, Any]
    backbone: Backbone | None = None
    python_path: str | None = None

    def __len__(self) -> int:
        """Return the number of gallery images."""
        return int(self.shards.manifest.counts["rows"])

    @property
    def dimension(self) -> int:
        """Return the dimension of the vectors."""
        return int(self.shards.manifest.counts["dimension"])

    @property
    def metric(self) -> str:
        """Return cosine, ip or l2."""
        return self.shards.metric

    @property
    def nlist(self) -> int:
        """Return the number of inverted lists."""
        return int(self.shards.manifest.counts["nlist"])

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        nprobe: int | None = None,
        gap: float | None = None,
        query_ids: Sequence[str] | None = None,
    ) -> Matches:
        """Return the `k` most similar gallery images of each query, exact unless lists are limited.

        Args:
            queries: Vectors, an array (q, d) or (d,), a list of paths or of Pillow images, or one
                path or image. Images are embedded by the bundle of the index, on the CPU.
            k: Number of matches per query; fewer where the index has fewer images.
            nprobe: Number of inverted lists that a query reads, closest first; default: all.
            gap: Largest difference to the score of the closest centroid at which a list is read
                (docs/tables.md, recall); default: no limit.
            query_ids: One id per query; default: the paths, or the positions "0", "1", …

        Raises:
            UsageError: If an argument is of a wrong type or value.
            InputError: If an image cannot be read or decoded.
            Mismatch: If vectors have another dimension, or the index has no bundle for images.
            Damaged: If a file of the index is missing or altered.
        """
        if k < 1:
            raise UsageError(f"k {k}: write at least 1")
        probing = None
        if nprobe is not None or gap is not None:
            if (nprobe is not None and nprobe < 1) or (gap is not None and not gap >= 0):
                raise UsageError(
                    f"nprobe {nprobe}, gap {gap}: write at least 1 list and a gap of 0"
                )
            limit = self.nlist if nprobe is None else nprobe
            probing = Probing(min(limit, self.nlist), math.inf if gap is None else gap)
        vectors, ids, paths, pictures = self._vectors(queries)
        if query_ids is not None:
            ids = [str(query_id) for query_id in query_ids]
        elif len(set(ids)) != len(ids):
            raise UsageError("queries repeat a path; pass each path once, or query_ids")
        if len(ids) != len(vectors) or len(set(ids)) != len(ids):
            raise UsageError(f"query_ids has {len(ids)} ids; pass {len(vectors)} different ones")
        candidates = self.shards.search(vectors, min(k, max(1, len(self))), probing)
        rows = pa.table({
            "row": np.arange(len(vectors)), "image_id": pa.array(ids, pa.string()),
            "path": pa.array(paths, pa.string()),
            "label": pa.nulls(len(vectors), pa.string()),
        })  # fmt: skip
        matches = rank_candidates([candidates], k, rows, self.shards.metric)
        return Matches(None, len(vectors), self.metric, lambda: [matches], pictures)

    def _vectors(self, queries: Any) -> tuple[Vectors, list[str], list[str], dict[str, bytes]]:
        """Return the vectors of queries, their ids and paths, and thumbnails of those in memory."""
        if isinstance(queries, str | os.PathLike) or hasattr(queries, "getexif"):
            queries = [queries]
        if isinstance(queries, list | tuple) and queries:
            if isinstance(queries[0], str | os.PathLike):
                return self._embed_files([os.fspath(path) for path in queries])
            if hasattr(queries[0], "getexif"):
                return self._embed_images(queries)
        if isinstance(queries, list | tuple) and not queries:
            queries = np.empty((0, self.dimension), np.float32)
        vectors = np.atleast_2d(np.asarray(queries))
        if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
            raise UsageError(
                f"queries are {vectors.dtype} of shape {vectors.shape}; pass vectors (q, d), or a "
                "list of paths or of Pillow images"
            )
        if vectors.shape[1] != self.dimension:
            raise Mismatch(
                f"queries have dimension {vectors.shape[1]}, and {self.__fspath__()} has "
                f"{self.dimension}; pass vectors of the same model"
            )
        if vectors.dtype not in (np.float16, np.float32):
            with np.errstate(over="ignore"):  # checked below
                vectors = vectors.astype(np.float32)
        if not np.isfinite(vectors).all():
            raise UsageError("queries contain NaN, infinity or numbers beyond float32; omit them")
        return vectors, [str(row) for row in range(len(vectors))], [""] * len(vectors), {}

    def _embed_files(
        self, paths: list[str]
    ) -> tuple[Vectors, list[str], list[str], dict[str, bytes]]:
        from lookalike.query_vectors import read_files
        from retrieval.sources.path_list import absolute

        places = [absolute(os.getcwd(), path) for path in paths]
        return self._images.embed(list(read_files(places)), paths), paths, places, {}

    def _embed_images(
        self, images: Sequence[Image]
    ) -> tuple[Vectors, list[str], list[str], dict[str, bytes]]:
        from lookalike.query_vectors import encode_png

        ids = [str(number) for number in range(len(images))]
        names = [f"image {number}" for number in ids]
        encoded = [encode_png(image) for image in images]
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, data in zip(ids, encoded, strict=True):
                files.append(os.path.join(folder, number))
                with open(files[-1], "wb") as file:
                    file.write(data)
            read = read_pictures(files)
        pictures = {name: read[file] for name, file in zip(names, files, strict=True)}
        return self._images.embed(encoded, names), ids, names, pictures

    @cached_property
    def _images(self) -> Any:
        """Return the embedder of images; raise Mismatch if the index has no bundle."""
        from lookalike.query_vectors import ImageEmbedder
        from retrieval.models.bundle import read_bundle
        from retrieval.models.registry import add_model, add_named_model
        from retrieval.models.resolve import check_runnable

        if self.settings["bundle"] is None:
            raise Mismatch(
                f"{self.__fspath__()} holds imported vectors without a model; pass vectors of the "
                "same model"
            )
        bundle = read_bundle(self.shards.folder)
        if isinstance(self.backbone, Model):
            add_model(self.backbone)
        elif self.backbone is not None:
            add_named_model(self.backbone, self.python_path)
        check_runnable(bundle)
        return ImageEmbedder(bundle, self.settings["embedding_dtype"])

    def images(self) -> pa.Table:
        """Return the gallery images as an Arrow table: row, image_id, path, label and others."""
        numbers = range(int(self.shards.manifest.counts["shards"]))
        manifest, folder = self.shards.manifest, self.shards.folder
        tables = [read_live_rows(folder, manifest, number) for number in numbers]
        return pa.concat_tables([SHARD_ROWS.schema.empty_table(), *tables]).sort_by("row")

    def to_faiss(self) -> Any:
        """Return all rows as one FAISS index in memory; its ids are the column row of `images`.

        For cosine, FAISS compares inner products: scale queries to unit length. An index larger
        than memory is written by the command `index` with `export_faiss`.
        """
        import faiss

        from retrieval.index.export_faiss import export_index

        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "merged.faiss")
            export_index(self.shards.folder, self.shards.manifest, file, 1 << 62)
            return faiss.read_index(file)

    def __fspath__(self) -> str:
        return self.shards.folder.uri()

    def __repr__(self) -> str:
        return f"Index({self.__fspath__()}: {len(self)} vectors, {self.metric})"

    def _repr_html_(self) -> str:
        counts = self.shards.manifest.counts
        return properties(self.__fspath__(), {
            "images": len(self), "dimension": self.dimension, "metric": self.metric,
            "inverted lists": self.nlist, "shards": counts["shards"],
        })  # fmt: skip


def open_index(
    path: str | os.PathLike[str], *, memory: int | str | None = None,
    backbone: Backbone | None = None, python_path: str | os.PathLike[str] | None = None,
) -> Index:  # fmt: skip
    """Open a finished index, written by `index` or in the folder index/ of `run`.

    Shards are verified by their checksums when they are read, and stay in memory if all of them
    together take at most `memory`, a number of bytes or a size such as "16G"; default: the
    max_index_memory that the index was built with. If the images were embedded with a model of
    your own, `backbone` names it (and `python_path` its folder) as for `rank`, or is its `Model`:
    code is never taken from an output.

    Raises:
        InputError: If there is no finished index.
        Mismatch: If it is another kind of output.
        Damaged: If a file is missing or altered.
    """
    from jobs.config.options import parse_size

    folder = open_folder(os.fspath(path))
    manifest = finished_output.read_manifest(folder, kind="index")
    settings = finished_output.read_settings(folder)
    limit = settings["max_index_memory"]
    if memory is not None:
        try:
            limit = parse_size(str(memory))
        except ValueError as error:
            raise UsageError(f"memory: {error}") from error
    folder_of_module = None if python_path is None else os.fspath(python_path)
    return Index(ShardIndex(folder, manifest, limit), settings, backbone, folder_of_module)
