"""run.json: what may differ from run to run, and so stands in no fingerprint and no checksum."""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import socket
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from retrieval.storage.files import Folder
from retrieval.storage.finished import RUN

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


class Stopwatch:
    """Times a stage from its making on."""

    def __init__(self) -> None:
        self._began = datetime.now(UTC)
        self._started = time.monotonic()

    def write(self, folder: Folder, settings: Any, **counts: Any) -> None:
        """Put run.json into an output; values of settings that may hold secrets are left out."""
        values = {
            "began": self._began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._started, 3),
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
