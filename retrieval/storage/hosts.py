"""Reads from hosts that a URL names: one that does not answer is no reason to stop the job.

A bucket or a disk that fails is the store of all images, and stops the job. A list of URLs spans
hosts that nobody vouches for: what one of them refuses, or does not answer, is an error of that
image, tried a few times and then recorded. A host in trouble is asked once per image and no more,
and one that stays silent is left alone for a while, so that its images cost no minutes each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import fsspec

from retrieval.errors import AccessRefused, StorageFailure
from retrieval.storage.patience import ATTEMPTS, status_of

_SCHEMES = ("http", "https", "ftp", "ftps", "sftp", "ssh", "smb")
_SILENT = 2
"""Single attempts without an answer after which a host is left alone."""

_REST = 60.0
"""Seconds for which it is."""

_TIMES = {"total": 300.0, "sock_connect": 10.0, "sock_read": 30.0}
"""Seconds that a web host may take; aiohttp would wait 30 for a connection and 300 for a byte."""


class HostError(OSError):
    """A host refuses an image or does not answer; of an answer `status` is the HTTP status."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Trouble:
    reason: str
    silent: int = 0  # times in a row that it did not answer, since its attempts were used up
    since: float = 0.0


@dataclass
class Hosts:
    """What is known of the hosts that images are read from; threads may share it."""

    _troubled: dict[str, _Trouble] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Hosts], tuple[()]]:
        """Travel to another process without what is known here, which a lock cannot anyway."""
        return Hosts, ()

    def read(self, url: str, action: Callable[[int], bytes]) -> bytes:
        """Let `action` read with so many attempts at most; HostError where its host is at fault."""
        host = host_of(url)
        if host is None:
            return action(ATTEMPTS)
        trouble = self._troubled.get(host)
        if trouble and trouble.silent >= _SILENT and time.monotonic() - trouble.since < _REST:
            raise HostError(trouble.reason)
        try:
            data = action(1 if trouble else ATTEMPTS)
        except (AccessRefused, StorageFailure) as error:
            cause = error.__cause__ or error
            status = status_of(cause)
            reason = _reason(host, cause, status)
            if isinstance(error, StorageFailure):
                self._note(host, reason, silent=status is None)
            raise HostError(reason, status) from cause
        except Exception as error:
            self._forget(host)
            status = status_of(error)
            if status is None and type(error).__name__ != "TooManyRedirects":
                raise
            raise HostError(_reason(host, error, status), status) from error
        self._forget(host)
        return data

    def _note(self, host: str, reason: str, *, silent: bool) -> None:
        with self._lock:
            before = self._troubled.get(host)
            times = before.silent + 1 if before and silent else 0
            self._troubled[host] = _Trouble(reason, times, time.monotonic())

    def _forget(self, host: str) -> None:
        with self._lock:
            self._troubled.pop(host, None)


def host_of(url: str) -> str | None:
    """Return the host and port that a URL names; None where it names a bucket or a local path."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        return None
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname


def within_time(url: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options with which a web host is not waited for longer than an image is worth.

    What a person has set, here or in fsspec's configuration, stays.
    """
    scheme = url.partition("://")[0].lower()
    settings = [options, *(fsspec.config.conf.get(name, {}) for name in ("http", "https"))]
    if scheme not in ("http", "https") or any("client_kwargs" in each for each in settings):
        return options
    from aiohttp import ClientTimeout

    return {**options, "client_kwargs": {"timeout": ClientTimeout(**_TIMES)}}


def _reason(host: str, error: BaseException, status: int | None) -> str:
    """Return the reason of a failure, in the same words for every image of a host."""
    if status is not None:
        meaning = getattr(error, "message", "")
        return f"{host} answered {status} ({meaning})" if meaning else f"{host} answered {status}"
    if type(error).__name__ == "TooManyRedirects":
        return f"{host} redirects in a circle"
    if isinstance(error, TimeoutError):
        return f"{host} did not answer in time"
    why = getattr(error, "strerror", None) or type(error).__name__
    return f"{host} cannot be reached ({why})"
