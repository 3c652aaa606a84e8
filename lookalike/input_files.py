"""Inputs from memory, written to files that the commands read.

The files of a command with the output OUT lie beside it, in the hidden folder `.OUT.inputs`, since
reports and later runs read images from there again. Each option has a file of its own, which is
replaced only if its content differs: the same data is the same input, and changed data is an input
that has changed, as a folder of images may. A command without an output gets a temporary folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lookalike.input_types import DataKind, data_kind
from retrieval.core.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from retrieval.storage.folder import Folder

_EXPECTED = {
    "Images": "a path, a list of paths or of Pillow images, or a table with a column of paths",
    "Vectors": "a path, an array (n, d), or a table with a column of vectors",
    "ImagesOrVectors": "a path, a list of paths or of Pillow images, an array (n, d), or a table "
    "with a column of paths or vectors",
    "Labels": "a path, or a table with the columns image_id and label",
    "Ids": "a path, or a list with one id per row of the array",
}


@contextmanager
def written_inputs(verb: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of a verb with data from memory replaced by the paths of its files.

    Raises UsageError for data that the option does not take.
    """
    in_memory = {
        name: kind
        for name, value in arguments.items()
        if (kind := data_kind(verb, name)) and not isinstance(value, str | os.PathLike | None)
    }
    if not in_memory:
        yield dict(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = _input_folder(arguments.get("output"), temporary)
        paths = dict(arguments)
        for name, kind in in_memory.items():
            flag = "--" + name.replace("_", "-")
            paths |= _write(_Target(folder, name, flag, kind), paths)
        yield paths


def _input_folder(output: Any, temporary: str) -> Folder:
    """Return the folder of the inputs of an output, or the temporary one without an output."""
    from retrieval.storage.local import is_remote, local_path, open_folder

    if output is None:
        return open_folder(temporary)
    location = os.fspath(output)
    path = location if is_remote(location) else local_path(location)
    head, _, name = path.rstrip("/").rpartition("/")
    return open_folder(f"{head}/.{name}.inputs")


class _Target:
    """Files of one option in the folder of inputs."""

    def __init__(self, folder: Folder, name: str, flag: str, kind: DataKind) -> None:
        self.folder, self.name, self.flag, self.kind = folder, name, flag, kind

    def refuse(self, value: Any) -> UsageError:
        """Return the error of a value that the option does not take."""
        if isinstance(value, list | tuple) and not value:
            return UsageError(f"{self.flag}: this list is empty; pass {_EXPECTED[self.kind]}")
        type_name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return UsageError(f"{self.flag}: this {type_name} is no input; pass {_EXPECTED[self.kind]}")

    def put(self, name: str, write: Callable[[BinaryIO], Any]) -> str:
        """Write a file unless there is one of the same content; return its path or URI."""
        return _put_if_changed(self.folder, name, write)


def _write(target: _Target, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write the data of one option; return its path, and options that describe the file."""
    value = arguments[target.name]
    if hasattr(value, "to_frame"):  # a column of pandas or polars
        value = value.to_frame()
    if _is_table(value):
        return _write_table(target, _to_arrow(value), arguments)
    if target.kind == "Ids":
        return {target.name: _write_ids(target, value)}
    if isinstance(value, list | tuple) and not value:
        raise target.refuse(value)
    if isinstance(value, list | tuple) and target.kind != "Labels":
        if isinstance(value[0], str | os.PathLike) and target.kind != "Vectors":
            return _write_table(target, _path_table(target, value), arguments)
        if hasattr(value[0], "getexif") and target.kind != "Vectors":
            return {target.name: _write_images(target, value)}
    if target.kind in ("Vectors", "ImagesOrVectors"):
        return {target.name: _write_array(target, value)}
    raise target.refuse(value)


def _is_table(value: Any) -> bool:
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "iloc")  # an older pandas


def _to_arrow(value: Any) -> pa.Table:
    """Return a table of pyarrow, pandas, polars or another library as an Arrow table.

    An index of pandas that has a name is a column; metadata and views, which not every reader of
    Parquet supports, are dropped.
    """
    import pyarrow as pa

    table = pa.Table.from_pandas(value) if hasattr(value, "iloc") else pa.table(value)
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    table = table.select(names).replace_schema_metadata(None).combine_chunks()
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    fields = [field.with_type(plain.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _path_table(target: _Target, paths: Sequence[Any]) -> pa.Table:
    import pyarrow as pa

    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise target.refuse(next(p for p in paths if not isinstance(p, str | os.PathLike)))
    return pa.table({"path": pa.array([os.fsdecode(path) for path in paths], pa.string())})


def _write_table(target: _Target, table: pa.Table, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write a table as Parquet, relative paths made absolute; return its path and its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from retrieval.sources.vectors import vector_column

    described: dict[str, Any] = {}
    if target.kind not in ("Labels", "Ids"):
        boxes = {name.strip() for name in (arguments.get("box_columns") or "").split(",")}
        others = pa.schema([field for field in table.schema if field.name not in boxes])
        vectors = arguments.get("embedding_column") or vector_column(others)
        if vectors is None and target.kind == "Vectors":
            raise UsageError(
                f"{target.flag}: the table has no column of vectors; name it with embedding_column "
                f"(columns: {', '.join(table.column_names)})"
            )
        if vectors is None:
            table = _with_absolute_paths(table, arguments)
        elif target.kind == "Images":
            raise UsageError(
                f"{target.flag}: the column {vectors} holds vectors, and this command takes images;"
                " use index and rank, or name it with box_columns if it holds boxes"
            )
        elif "embedding_column" in arguments:
            described["embedding_column"] = vectors
    path = target.put(f"{target.name}.parquet", lambda file: pq.write_table(table, file))
    return {target.name: path, **described}


def _with_absolute_paths(table: pa.Table, arguments: Mapping[str, Any]) -> pa.Table:
    """Return a table whose relative paths start from the current folder.

    The paths as they were are the ids, unless the table has a column of ids. Tables without a
    column of paths, as those with the bytes of images, stay as they are.
    """
    import pyarrow as pa

    from retrieval.sources.metadata_columns import find_column, is_text
    from retrieval.sources.path_list import PATH_COLUMNS, absolute

    texts = [field.name for field in table.schema if is_text(field.type)]
    named = (find_column(texts, name) for name in PATH_COLUMNS)
    column = arguments.get("image_column") or next(filter(None, named), None)
    if column is None and len(table.column_names) == 1:
        column = next(iter(texts), None)
    if column not in texts:
        return table
    paths = table[column].to_pylist()
    folder = os.getcwd()
    places = [None if path is None else absolute(folder, path) for path in paths]
    position = table.column_names.index(column)
    if arguments.get("id_column") is None and find_column(table.column_names, "image_id") is None:
        table = table.append_column("image_id", pa.array(paths, pa.string()))
    return table.set_column(position, column, pa.array(places, pa.string()))


def _write_array(target: _Target, value: Any) -> str:
    """Write an array (n, d) of numbers as a .npy file; ids are the row numbers."""
    import numpy as np

    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise target.refuse(value) from None
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise UsageError(
            f"{target.flag}: the array is {array.dtype} of shape {array.shape}; pass numbers of "
            "shape (n, d)"
        )
    array = np.ascontiguousarray(array)
    return target.put(
        f"{target.name}.npy",
        lambda file: np.lib.format.write_array(file, array, allow_pickle=False),
    )


def _write_ids(target: _Target, value: Any) -> str:
    """Write one id per row as a Parquet file."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(ids, list | tuple) or not all(isinstance(i, str | int) for i in ids):
        raise target.refuse(value)
    table = pa.table({"image_id": pa.array([str(image_id) for image_id in ids], pa.string())})
    return target.put(f"{target.name}.parquet", lambda file: pq.write_table(table, file))


def _write_images(target: _Target, images: Sequence[Any]) -> str:
    """Write Pillow images as PNG files 000000.png, 000001.png, …; return their folder."""
    from lookalike.query_vectors import encode_png

    names = [f"{target.name}/{number:06d}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        if not hasattr(image, "getexif"):
            raise target.refuse(image)
        data = encode_png(image)
        target.put(name, lambda file, data=data: file.write(data))  # type: ignore[misc]
    for entry in list(target.folder.entries(target.name)):
        if entry.path not in names:  # of a longer list before
            target.folder.delete(entry.path)
    return target.folder.child(target.name).uri()


def _put_if_changed(folder: Folder, name: str, write: Callable[[BinaryIO], Any]) -> str:
    """Write a file unless it exists with the same content; return its path or URI.

    The content is made twice, so that only a checksum of it is in memory.
    """
    digest = _Digest()
    write(cast(BinaryIO, digest))
    if not folder.exists(name) or folder.sha256(name) != digest.sha256.hexdigest():
        folder.delete(name)

        def write_file(path: str) -> None:
            with open(path, "wb") as file:
                write(file)

        folder.put_new_file(name, write_file)
    return folder.uri(name)


class _Digest(io.RawIOBase):
    """Binary file that keeps only the SHA-256 of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sha256 = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Add bytes, and return their number."""
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        self._size += len(view)
        return len(view)

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self._size
