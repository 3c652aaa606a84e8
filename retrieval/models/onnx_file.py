"""Reading of ONNX files, with their external data moved into the file.

An ONNX file may keep parameters in other files, which it names. These names come from the file and
are not trusted: only files in its own folder are read, within their size, and never through a link
that leaves the folder. The result names no files, so that a runtime given it reads none.

The file is a protobuf message (onnx.proto). It is walked by field number, without the onnx package:
everything is copied unchanged except tensors with external data, which get them as `raw_data`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from retrieval.core.errors import InputError
from retrieval.storage.input_files import read_range, read_uri
from retrieval.storage.local import is_remote, local_path

MAX_BYTES = (1 << 31) - 1
"""Largest size of the file with its external data: the limit of a protobuf message."""

_MAX_DEPTH = 100
"""Deepest nesting of messages; a network with branches in branches uses some ten."""

_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor",
                  23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}  # fmt: skip
"""Fields of each message of onnx.proto that lead to tensors: field number to kind of message."""

_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 9, 13, 14, 1
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types; groups are obsolete

ReadExternal = Callable[[str, int, int | None], bytes]
"""Returns the bytes of a file (location, offset, length), where length None means to its end."""


def read_onnx(path: str) -> bytes:
    """Read an ONNX file from a path or URI; return it with its external data inside.

    Raises InputError if it cannot be read, is not ONNX, is larger than `MAX_BYTES`, or names
    external data outside its folder or beyond the end of a file.
    """
    try:
        if not is_remote(path) and os.path.getsize(local_path(path)) > MAX_BYTES:
            raise InputError(f"--backbone onnx:{path} is larger than {MAX_BYTES} bytes")
        data = read_uri(path, only_files=True)
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--backbone onnx:{path} cannot be read ({reason})") from error
    try:
        inlined = inline_external_data(data, lambda *part: _read_external(path, *part))
    except (ValueError, OSError) as error:
        raise InputError(f"--backbone onnx:{path} is not a usable ONNX file ({error})") from error
    if len(inlined) > MAX_BYTES:
        raise InputError(
            f"--backbone onnx:{path} and its external data are larger than {MAX_BYTES} bytes"
        )
    return inlined


def inline_external_data(data: bytes, read_external: ReadExternal) -> bytes:
    """Return an ONNX file whose tensors hold their data themselves.

    Raises ValueError if it is not a protobuf message of this kind, OSError as `read_external` does.
    """
    if not data:
        raise ValueError("it is empty")
    budget = _Budget(MAX_BYTES - len(data))
    return b"".join(_rewrite(memoryview(data), "Model", read_external, budget, 0))


class _Budget:
    """Bytes of external data that may still be read: many tensors may name one large file."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"with its external data it is larger than {MAX_BYTES} bytes")


def _rewrite(
    message: memoryview, kind: str, read_external: ReadExternal, budget: _Budget, depth: int
) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a message in which no tensor refers to external data."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"its messages are nested more than {_MAX_DEPTH} deep")
    if kind == "Tensor":
        yield from _rewrite_tensor(message, read_external, budget)
        return
    for number, wire_type, whole, content in _fields(message):
        child = _CHILDREN[kind].get(number)
        if child is None or wire_type != _LENGTH:
            yield whole
            continue
        pieces = list(_rewrite(content, child, read_external, budget, depth + 1))
        yield _encode_varint(number << 3 | _LENGTH) + _encode_varint(sum(map(len, pieces)))
        yield from pieces


def _rewrite_tensor(
    message: memoryview, read_external: ReadExternal, budget: _Budget
) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a tensor; every field that refers to external data is removed."""
    pieces: list[bytes | memoryview] = []
    entries: dict[str, str] = {}
    is_external = False
    for number, wire_type, whole, content in _fields(message):
        if number == _EXTERNAL_DATA:
            key, value = _parse_entry(content)
            entries[key] = value
        elif number == _DATA_LOCATION:
            is_external = wire_type != _VARINT or _decode_varint(content, 0)[0] == _EXTERNAL
        else:
            pieces.append(whole)
    yield from pieces
    if not is_external and not entries:
        return
    if not is_external or "location" not in entries:
        raise ValueError("a tensor refers to external data incompletely")
    length = int(entries["length"]) if "length" in entries else None
    offset = int(entries.get("offset", "0"))
    if offset < 0 or (length is not None and length < 0):
        raise ValueError("a tensor refers to external data at a negative position")
    budget.spend(length or 0)
    raw = read_external(entries["location"], offset, length)
    if length is None:
        budget.spend(len(raw))
    elif len(raw) != length:
        raise ValueError(f"{entries['location']} ends before the data of a tensor")
    yield _encode_varint(_RAW_DATA << 3 | _LENGTH) + _encode_varint(len(raw))
    yield raw


def _read_external(path: str, location: str, offset: int, length: int | None) -> bytes:
    """Read external data from the folder of the ONNX file; raise ValueError for other places."""
    parts = location.split("/")
    if (
        not location or "\\" in location or "\0" in location or ":" in location
        or any(part in ("", ".", "..") for part in parts)
    ):  # fmt: skip
        raise ValueError(f"its external data {location!r} are not a file in its folder")
    if is_remote(path):
        file = path.rpartition("/")[0] + "/" + location
        return read_range(file, offset, MAX_BYTES if length is None else length)
    folder = os.path.realpath(os.path.dirname(local_path(path)) or ".")
    file = os.path.realpath(os.path.join(folder, *parts))
    if os.path.commonpath([folder, file]) != folder:
        raise ValueError(f"its external data {location!r} are a link to another folder")
    size = os.stat(file).st_size
    if length is None:
        length = max(size - offset, 0)
    if length > MAX_BYTES or offset + length > size:
        raise ValueError(f"{location} has {size} bytes, too few or too many for its tensor")
    return read_range(file, offset, length)


def _parse_entry(message: memoryview) -> tuple[str, str]:
    """Return key and value of a StringStringEntryProto."""
    values = {number: bytes(content).decode() for number, _, _, content in _fields(message)}
    return values.get(1, ""), values.get(2, "")


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Yield (field number, wire type, the whole field, its content) of a protobuf message.

    Raises ValueError where the message is damaged.
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = _decode_varint(message, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            end = _decode_varint(message, position)[1]
        elif wire_type == _FIXED64:
            end = position + 8
        elif wire_type == _FIXED32:
            end = position + 4
        elif wire_type == _LENGTH:
            length, position = _decode_varint(message, position)
            end = position + length
        else:
            raise ValueError(f"it has a field of wire type {wire_type}")
        if end > len(message) or not tag >> 3:
            raise ValueError("a field extends beyond its message")
        yield tag >> 3, wire_type, message[start:end], message[position:end]
        position = end


def _decode_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the variable-length integer at a position, and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is not terminated")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
