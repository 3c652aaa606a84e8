"""Which networks are compared, and with which parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.config.settings import CompareSettings
from retrieval.core.errors import InputError, UsageError
from retrieval.models import registry
from retrieval.models.bundle import Bundle, read_bundle
from retrieval.models.pooling import EACH
from retrieval.models.resolve import RANDOM, resolve_each
from retrieval.storage.local import Folder, open_folder

ALL = "all"
_ENDINGS = (".safetensors", ".pth")


@dataclass(frozen=True)
class Contender:
    """A network to be compared: its name on the table, and that of its store on disk."""

    name: str
    file: str
    bundle: str | None = None  # its path

    @property
    def figures(self) -> str:
        """Give the file of its figures, below the output."""
        return f"backbones/{self.file}.json"


def contenders_of(settings: CompareSettings) -> list[Contender]:
    """Name the networks that --backbones and --bundle ask for; unknown names are refused."""
    bundles = _parts(settings.bundle)
    if not settings.backbones and not bundles:
        raise UsageError("--backbones names no network to compare; write a,b,c or all")
    names = _named(settings) if settings.backbones is not None else []
    found = [Contender(name, name.replace(":", "-")) for name in names]
    return found + [
        Contender(path.encode("utf-8", "backslashreplace").decode(), f"bundle-{number}", path)
        for number, path in enumerate(bundles)
    ]


def model_of(settings: CompareSettings, contender: Contender) -> tuple[Bundle, dict[str, int]]:
    """Make the bundle that embeds for all poolings at once, and the width of each."""
    if contender.bundle is not None:
        return _trained(contender.bundle)
    weights = settings.weights
    if weights not in (None, RANDOM):
        weights = _file_of(open_folder(weights), contender.name)
        if weights is None:
            raise InputError(
                f"--weights {settings.weights} holds no {_stem(contender.name)}.safetensors or "
                f"{_stem(contender.name)}.pth"
            )
    return resolve_each(
        contender.name, weights, image_size=settings.image_size, resize=settings.resize,
        seed=settings.seed,
    )  # fmt: skip


def _trained(path: str) -> tuple[Bundle, dict[str, int]]:
    """Read a bundle; without a projection it gives raw vectors, which all metrics are measured on.

    Its own pooling stays: it was trained with it.
    """
    bundle = read_bundle(open_folder(path))
    registry.check_name(bundle.backbone)
    if bundle.pooling == EACH:
        raise UsageError(f"--bundle {path} is of a comparison; name its backbone in --backbones")
    if bundle.projection is None:
        bundle = dataclasses.replace(bundle, normalize=False)
    return bundle, {bundle.pooling: bundle.dimension}


def _named(settings: CompareSettings) -> list[str]:
    names = _parts(settings.backbones)
    if not names:
        raise UsageError("--backbones names no network to compare; write a,b,c or all")
    if names != [ALL]:
        for name in names:
            registry.check_name(name, flag="--backbones")
        return names
    everything = sorted(registry.names())
    if settings.weights is None:
        return [name for name in everything if name != registry.SCRATCH]
    if settings.weights == RANDOM:
        return everything
    folder = open_folder(settings.weights)
    names = [name for name in everything if _file_of(folder, name)]
    if not names:
        raise InputError(
            f"--weights {settings.weights} holds no file of a backbone; name a folder with "
            "NAME.safetensors or NAME.pth"
        )
    return names


def _parts(text: str | None) -> list[str]:
    """Give the names in a list, each once, in their order."""

    def parts() -> Iterator[str]:
        for part in (text or "").split(","):
            if part.strip():
                yield part.strip()

    return list(dict.fromkeys(parts()))


def _stem(name: str) -> str:
    return name.rpartition(":")[2]


def _file_of(folder: Folder, name: str) -> str | None:
    """Give where a folder holds the parameters of a backbone, if it does."""
    files = (_stem(name) + ending for ending in _ENDINGS)
    return next((folder.uri(file) for file in files if folder.exists(file)), None)
