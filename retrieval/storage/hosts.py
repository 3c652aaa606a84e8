"""Reading from web hosts named by URLs, where a failing host must not stop the job.

A failing bucket or disk affects all images and stops the job. In a list of URLs, a rejected request
or a timeout is an error of that image, which is retried a few times and then recorded. After a
failure a host gets one attempt per image, and an unresponsive host is skipped for a minute, so that
its images do not take minutes each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import fsspec

from retrieval.core.errors import AccessRefused, StorageFailure
from retrieval.storage.retry import ATTEMPTS, http_status

_SCHEMES = ("http", "https", "ftp", "ftps", "sftp", "ssh", "smb")
_MAX_TIMEOUTS = 2
"""Consecutive single attempts without an answer after which a host is skipped."""

_SKIP_SECONDS = 60.0
"""Time for which an unresponsive host is skipped."""

_TIMEOUTS = {"total": 300.0, "sock_connect": 10.0, "sock_read": 30.0}
"""Timeouts of web hosts in seconds; aiohttp's defaults are 30 to connect and 300 for a byte."""


class HostError(OSError):
    """A host rejected a request or did not answer; `status` is the HTTP status if there is one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _HostFailure:
    reason: str
    timeouts: int = 0  # consecutive reads without an answer since the first failed read
    since: float = 0.0  # time.monotonic() of the last failure


@dataclass
class HostHealth:
    """Failures of the hosts that images are read from, per host; thread-safe."""

    _failures: dict[str, _HostFailure] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[HostHealth], tuple[()]]:
        """Pickle as an empty object, since the lock cannot be pickled."""
        return HostHealth, ()

    def read(self, url: str, action: Callable[[int], bytes]) -> bytes:
        """Return the result of `action`, called with the number of attempts to make.

        Raises HostError if a web host fails, and the errors of `action` for other locations.
        """
        host = host_of(url)
        if host is None:
            return action(ATTEMPTS)
        failure = self._failures.get(host)
        if (
            failure
            and failure.timeouts >= _MAX_TIMEOUTS
            and time.monotonic() - failure.since < _SKIP_SECONDS
        ):
            raise HostError(failure.reason)
        try:
            data = action(1 if failure else ATTEMPTS)
        except (AccessRefused, StorageFailure) as error:
            cause = error.__cause__ or error
            status = http_status(cause)
            reason = _format_reason(host, cause, status)
            if isinstance(error, StorageFailure):
                self._record_failure(host, reason, timed_out=status is None)
            raise HostError(reason, status) from cause
        except Exception as error:
            self._forget(host)
            status = http_status(error)
            if status is None and type(error).__name__ != "TooManyRedirects":
                raise
            raise HostError(_format_reason(host, error, status), status) from error
        self._forget(host)
        return data

    def _record_failure(self, host: str, reason: str, *, timed_out: bool) -> None:
        with self._lock:
            previous = self._failures.get(host)
            timeouts = previous.timeouts + 1 if previous and timed_out else 0
            self._failures[host] = _HostFailure(reason, timeouts, time.monotonic())

    def _forget(self, host: str) -> None:
        with self._lock:
            self._failures.pop(host, None)


def host_of(url: str) -> str | None:
    """Return the host and port in a URL of a web host; None for buckets and local paths."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        return None
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname


def with_timeouts(url: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return fsspec options with timeouts for web hosts that suit single images.

    Timeouts set by the user, here or in fsspec's configuration, are kept.
    """
    scheme = url.partition("://")[0].lower()
    settings = [options, *(fsspec.config.conf.get(name, {}) for name in ("http", "https"))]
    if scheme not in ("http", "https") or any("client_kwargs" in mapping for mapping in settings):
        return options
    from aiohttp import ClientTimeout

    return {**options, "client_kwargs": {"timeout": ClientTimeout(**_TIMEOUTS)}}


def _format_reason(host: str, error: BaseException, status: int | None) -> str:
    """Describe a failure; the text is the same for every image of a host."""
    if status is not None:
        message = getattr(error, "message", "")
        return f"{host} answered {status} ({message})" if message else f"{host} answered {status}"
    if type(error).__name__ == "TooManyRedirects":
        return f"{host} redirects in a circle"
    if isinstance(error, TimeoutError):
        return f"{host} did not answer in time"
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"{host} cannot be reached ({reason})"
