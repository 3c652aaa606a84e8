"""Does every node of a cluster see the folders that are named? If there are several, each is asked.

A folder that only the driver sees would else be found empty, or filled where nobody looks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.core.errors import UsageError
from retrieval.storage.local import is_remote, local_path
from retrieval.storage.temporary import temporary_name

_PATIENCE = 60.0
"""Seconds for an answer of a node; one that has died since is not waited for."""


@dataclass(frozen=True)
class Local:
    """A local path that workers read from or write into."""

    flag: str
    path: str
    written: bool


def local_places(settings: Any) -> list[Local]:
    """Give the local paths among some settings that all nodes must see."""
    found = []
    for field in dataclasses.fields(settings):
        option, value = field.metadata.get("option"), getattr(settings, field.name)
        if option is not None and option.place and value is not None and not is_remote(value):
            found.append(Local(option.flag, local_path(value), option.place == "written"))
    return found


def refuse_unshared(places: Sequence[Local]) -> None:
    """Refuse places that a node which may get work does not see as this process does.

    Of what is read, the inode and a file's size are compared; where something will be written, a
    file of a drawn text is put, and must be read there. A cluster of one node is not asked, nor is
    a node that comes later.
    """
    others = _other_nodes() if places else {}
    if not others:
        return
    with _tokens(place for place in places if place.written) as tokens:
        marks = {place.path: _mark(place.path) for place in places if not place.written}
        for address, unseen in _asked(others, marks, tokens):
            for place in places:
                if place.path in unseen:
                    raise UsageError(
                        f"{place.flag} {place.path} is a local path, and node {address} does not "
                        "see the same folder there: put it on a file system that all nodes mount "
                        "at the same place, or name a bucket (s3://...)"
                    )


def _other_nodes() -> dict[str, str]:
    """Give the address of each node, by id, that may get work, but for the driver's own."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != own and node["Resources"].get("CPU", 0) > 0
    }


def _mark(path: str) -> tuple[int, int] | None:
    """Give what tells a folder, or a file, from another one of the same name."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, 0 if os.path.isdir(path) else found.st_size


@contextlib.contextmanager
def _tokens(places: Iterator[Local]) -> Iterator[dict[str, tuple[str, str]]]:
    """Put a drawn text where something will be written: {path: (file, text)}."""
    tokens: dict[str, tuple[str, str]] = {}
    try:
        for place in places:
            folder = place.path
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            name, text = os.path.join(folder, temporary_name()), secrets.token_hex(16)
            with contextlib.suppress(OSError):  # whoever writes there later says so
                with open(name, "x", encoding="ascii") as file:
                    file.write(text)
                tokens[place.path] = name, text
        yield tokens
    finally:
        for name, _ in tokens.values():
            os.unlink(name)


def _asked(
    nodes: Mapping[str, str], marks: Mapping[str, Any], tokens: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[str, list[str]]]:
    """Give what each node does not see, by its address."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(unseen)
    asked = {
        address: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(marks, tokens)
        for node, address in nodes.items()
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PATIENCE)
    for address, reference in asked.items():
        with contextlib.suppress(ray.exceptions.RayError):  # it is lost, as nodes may be
            yield address, ray.get(reference, timeout=0)


def unseen(marks: Mapping[str, Any], tokens: Mapping[str, tuple[str, str]]) -> list[str]:
    """Give the paths that are not, on this node, what they are for the driver."""
    found = [path for path, mark in marks.items() if mark is not None and _mark(path) != mark]
    for path, (name, text) in tokens.items():
        try:
            with open(name, encoding="ascii") as file:
                there = file.read()
        except OSError:
            there = ""
        if there != text:
            found.append(path)
    return found
