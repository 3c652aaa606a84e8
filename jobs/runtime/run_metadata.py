"""run.json: what may differ from run to run, and so stands in no fingerprint and no checksum."""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import socket
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from retrieval.core.records import FileRecord, Rounding
from retrieval.storage.finished_output import RUN, read_if_there
from retrieval.storage.local import Folder

if TYPE_CHECKING:
    from jobs.cluster.resources import Cluster

_PACKAGES = (
    "lookalike",
    "ray",
    "torch",
    "torchvision",
    "openvino",
    "faiss-cpu",
    "pyarrow",
    "numpy",
)

_OF_A_STAGE = ("seconds", "per_second", "bytes", "peak_memory_bytes", "worker_peak_memory_bytes")


class Stopwatch:
    """Times a stage from its making on, and asks for the memory of its workers only."""

    def __init__(self, where: Cluster | None = None) -> None:
        self._began = datetime.now(UTC)
        self._started = time.monotonic()
        self._where = where
        if where is not None:
            where.peak = 0

    def write(
        self, folder: Folder, settings: Any, *, done: int | None = None,
        files: Iterable[FileRecord] | None = None, **counts: Any,
    ) -> None:  # fmt: skip
        """Put run.json into an output: `done` things, and the `files` that are there now.

        What is not known is left out. Settings stand there as they were given.
        """
        seconds = time.monotonic() - self._started
        known = {
            "per_second": None if done is None else round(done / seconds, 3),
            "bytes": None if files is None else sum(record.size for record in files),
            "worker_peak_memory_bytes": None if self._where is None else self._where.peak,
        }
        values = {
            "began": self._began.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            **{key: value for key, value in known.items() if value is not None},
            "host": socket.gethostname(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "packages": _versions(),
            "peak_memory_bytes": peak_memory(),
            "settings": {
                field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)
            },
            **counts,
        }
        folder.put(RUN, json.dumps(values, indent=1, sort_keys=True).encode())


def of_stages(folder: Folder, names: Iterable[str]) -> dict[str, Any]:
    """Give what the run.json of each stage says of its time, bytes, rate and memory."""
    told = {}
    for name in names:
        data = read_if_there(folder.child(name), RUN)
        if data is not None:
            values = json.loads(data)
            told[name] = {key: values.get(key) for key in _OF_A_STAGE}
    return told


def rounding_of(store: Folder) -> Rounding | None:
    """Read what rounding changed when vectors were last taken into a store; None: not measured."""
    data = read_if_there(store, RUN)
    measured = json.loads(data).get("rounding") if data else None
    return Rounding(**measured) if measured else None


def _versions() -> dict[str, str | None]:
    """Give the version of each package that shapes a result; none where it is not installed."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def peak_memory() -> int:
    """Give the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
