"""Versions of the installed packages, from their metadata, without importing them."""

from __future__ import annotations

PACKAGES = (
    "lookalike",
    "ray",
    "torch",
    "torchvision",
    "openvino",
    "faiss-cpu",
    "pyarrow",
    "numpy",
)
"""The packages that affect a result."""


def installed_versions() -> dict[str, str | None]:
    """Return the version of each of `PACKAGES`; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow, and not used by --help

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions
