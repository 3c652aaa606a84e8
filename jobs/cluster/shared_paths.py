"""Check that every node of a cluster sees the same local inputs and outputs as the driver.

Without it a folder that only the driver sees would look empty to workers, or they would write
their results to a disk that nobody reads.
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

_REPLY_TIMEOUT = 60.0
"""Seconds to wait for a node's reply; a node without one is taken as lost and not checked."""


@dataclass(frozen=True)
class SharedPath:
    """A local path that workers read from or write into."""

    flag: str
    path: str
    written: bool


def list_shared_paths(settings: Any) -> list[SharedPath]:
    """Return the local paths in a command's settings that all nodes must see."""
    paths = []
    for field in dataclasses.fields(settings):
        option, value = field.metadata.get("option"), getattr(settings, field.name)
        if option is not None and option.access and value is not None and not is_remote(value):
            paths.append(SharedPath(option.flag, local_path(value), option.access == "written"))
    return paths


def check_shared_paths(places: Sequence[SharedPath]) -> None:
    """Raise UsageError if a node that may get work does not see a path as this process does.

    For inputs the inode and, of files, the size are compared; in outputs a temporary file with a
    random text is written, which the node must be able to read. Nodes that join later are not
    checked.
    """
    others = _other_nodes() if places else {}
    if not others:
        return
    with _tokens(place for place in places if place.written) as tokens:
        identities = {place.path: _identify(place.path) for place in places if not place.written}
        for address, unseen in _find_unseen_by_node(others, identities, tokens):
            for place in places:
                if place.path in unseen:
                    raise UsageError(
                        f"{place.flag} {place.path} is a local path, and node {address} does not "
                        "see the same folder there: put it on a file system that all nodes mount "
                        "at the same place, or name a bucket (s3://...)"
                    )


def _other_nodes() -> dict[str, str]:
    """Return {id: address} of the nodes that may get work, without the driver's node."""
    import ray

    driver_node = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != driver_node and node["Resources"].get("CPU", 0) > 0
    }


def _identify(path: str) -> tuple[int, int] | None:
    """Return (inode, size) of a file, (inode, 0) of a folder, None if there is neither."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, 0 if os.path.isdir(path) else status.st_size


@contextlib.contextmanager
def _tokens(places: Iterator[SharedPath]) -> Iterator[dict[str, tuple[str, str]]]:
    """Write a random text near each output; yield {path: (file, text)} and remove the files."""
    tokens: dict[str, tuple[str, str]] = {}
    try:
        for place in places:
            folder = place.path
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            name, text = os.path.join(folder, temporary_name()), secrets.token_hex(16)
            with contextlib.suppress(OSError):  # the later write reports the error
                with open(name, "x", encoding="ascii") as file:
                    file.write(text)
                tokens[place.path] = name, text
        yield tokens
    finally:
        for name, _ in tokens.values():
            os.unlink(name)


def _find_unseen_by_node(
    nodes: Mapping[str, str], identities: Mapping[str, Any], tokens: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield (address, paths that the node does not see) for each node that replies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(find_unseen)
    replies = {
        address: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(identities, tokens)
        for node, address in nodes.items()
    }
    ray.wait(list(replies.values()), num_returns=len(replies), timeout=_REPLY_TIMEOUT)
    for address, reference in replies.items():
        with contextlib.suppress(ray.exceptions.RayError):  # the node is lost
            yield address, ray.get(reference, timeout=0)


def find_unseen(identities: Mapping[str, Any], tokens: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return the paths that are not the same on this node as on the driver's."""
    unseen = [
        path
        for path, identity in identities.items()
        if identity is not None and _identify(path) != identity
    ]
    for path, (name, text) in tokens.items():
        try:
            with open(name, encoding="ascii") as file:
                content = file.read()
        except OSError:
            content = ""
        if content != text:
            unseen.append(path)
    return unseen
