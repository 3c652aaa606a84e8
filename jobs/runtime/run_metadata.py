"""run.json: times, memory, versions and settings of a run; in no fingerprint and no checksum."""

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
from typing import TYPE_CHECKING, Any

from jobs.runtime.versions import installed_versions
from retrieval.core.records import FileRecord, Rounding
from retrieval.storage.finished_output import RUN, read_if_exists
from retrieval.storage.local import Folder

if TYPE_CHECKING:
    from jobs.cluster.resources import Cluster

_STAGE_KEYS = ("seconds", "per_second", "bytes", "peak_memory_bytes", "worker_peak_memory_bytes")


class Stopwatch:
    """Timer of a stage from its creation on, which also records the peak memory of workers.

    `stage` is its name in the profile of the cluster's command.
    """

    def __init__(self, cluster: Cluster | None = None, stage: str = "") -> None:
        self._began = datetime.now(UTC)
        self._started = time.monotonic()
        self._cluster, self._stage = cluster, stage
        if cluster is not None:
            cluster.peak = 0
            self._began_in_profile = cluster.profile.now()

    def write(
        self, folder: Folder, settings: Any, *, done: int | None = None,
        files: Iterable[FileRecord] | None = None, **counts: Any,
    ) -> None:  # fmt: skip
        """Write run.json into an output.

        Args:
            folder: The output.
            settings: The settings, recorded as they were given.
            done: Number of processed items, for the rate; it is left out if None.
            files: Records of the files of the output, for their total size.
            **counts: Further values.
        """
        seconds = time.monotonic() - self._started
        optional: dict[str, Any] = {
            "per_second": None if done is None else round(done / seconds, 3),
            "bytes": None if files is None else sum(record.size for record in files),
        }
        if self._cluster is not None:
            self._cluster.profile.add(self._stage, self._began_in_profile)
            optional |= {
                "worker_peak_memory_bytes": self._cluster.peak,
                "profile": self._cluster.profile.to_json(),
            }
        values = {
            "began": self._began.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            **{key: value for key, value in optional.items() if value is not None},
            "host": socket.gethostname(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "packages": installed_versions(),
            "peak_memory_bytes": peak_memory(),
            "settings": {
                field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)
            },
            **counts,
        }
        folder.put(RUN, json.dumps(values, indent=1, sort_keys=True).encode())


def read_stage_metadata(folder: Folder, names: Iterable[str]) -> dict[str, Any]:
    """Return time, rate, bytes and memory of each stage from the run.json in its subfolder."""
    stages = {}
    for name in names:
        data = read_if_exists(folder.child(name), RUN)
        if data is not None:
            values = json.loads(data)
            stages[name] = {key: values.get(key) for key in _STAGE_KEYS}
    return stages


def read_rounding(store: Folder) -> Rounding | None:
    """Return the rounding errors of the last import of vectors into a store; None without any."""
    data = read_if_exists(store, RUN)
    measured = json.loads(data).get("rounding") if data else None
    return Rounding(**measured) if measured else None


def peak_memory() -> int:
    """Return the largest resident set size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
