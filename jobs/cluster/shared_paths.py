"""Check that every node of a cluster sees the same local inputs and outputs as the driver.

Otherwise a folder that only the driver sees would look empty to workers, or they would write their
results to a disk that the driver does not read.
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
"""Seconds to wait for the reply of a node; without one the node counts as lost and is skipped."""


@dataclass(frozen=True)
class SharedPath:
    """A local path that workers read or, if `written`, write; `flag` is its option."""

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


def check_shared_paths(shared_paths: Sequence[SharedPath]) -> None:
    """Raise UsageError if a node that may get work does not see a path as this process does.

    For inputs the inode and, of files, the size are compared; in outputs a temporary file with a
    random text is written, which the node must be able to read. Nodes that join later are not
    checked.
    """
    others = _other_nodes() if shared_paths else {}
    if not others:
        return
    with _tokens(shared_path for shared_path in shared_paths if shared_path.written) as tokens:
        identities = {
            shared_path.path: _identify(shared_path.path)
            for shared_path in shared_paths
            if not shared_path.written
        }
        for address, unseen in _find_unseen_by_node(others, identities, tokens):
            for shared_path in shared_paths:
                if shared_path.path in unseen:
                    raise UsageError(
                        f"{shared_path.flag} {shared_path.path} is a local path, and node "
                        f"{address} does not see the same folder there: put it on a file system "
                        "that all nodes mount under the same path, or specify a bucket (s3://...)"
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
def _tokens(shared_paths: Iterator[SharedPath]) -> Iterator[dict[str, tuple[str, str]]]:
    """Write a random text near each output; yield {path: (file, text)} and remove the files."""
    tokens: dict[str, tuple[str, str]] = {}
    try:
        for shared_path in shared_paths:
            folder = shared_path.path
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            name, text = os.path.join(folder, temporary_name()), secrets.token_hex(16)
            with contextlib.suppress(OSError):  # reported when the output is written
                with open(name, "x", encoding="ascii") as file:
                    file.write(text)
                tokens[shared_path.path] = name, text
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
